"""What `mlx_lm.benchmark` says of a folder: mlx-lm's own tool, in the dtype that the folder is stored in."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from quantkit.errors import EngineFailed

TOOL = "mlx_lm.benchmark"
AVERAGES = re.compile(r"^Averages: prompt_tps=([0-9.]+), generation_tps=([0-9.]+)", re.MULTILINE)
SECONDS, SECONDS_PER_TOKEN = 300.0, 2.0
PROGRAM = "import os; os.environ['HF_HUB_OFFLINE'] = '1'; from mlx_lm.benchmark import main; main()"


def own_speed(path: Path, prompt_tokens: int, decode_tokens: int, rounds: int) -> tuple[str, float, float]:
    """The tool's name, prompt tokens per second and decode tokens per second, means over `rounds`.

    Raises:
        EngineFailed: it failed, took too long, or says something else.
    """
    numbers = {"-p": prompt_tokens, "-g": decode_tokens, "-n": rounds}
    counts = [word for option, number in numbers.items() for word in (option, str(number))]
    command = [sys.executable, "-c", PROGRAM, "--model", str(path.resolve()), *counts]
    limit = SECONDS + SECONDS_PER_TOKEN * (prompt_tokens + decode_tokens) * (rounds + 1)
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        raise EngineFailed(f"{path}: {TOOL} gave no answer within {limit:g} s") from None
    found = AVERAGES.search(done.stdout)
    if done.returncode or found is None:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise EngineFailed(f"{path}: {TOOL}: {last[:200]}")
    return TOOL, float(found[1]), float(found[2])
