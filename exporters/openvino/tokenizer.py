"""The tokenizer and detokenizer of the folder as graphs, which OpenVINO GenAI runs, made by openvino-tokenizers.

How long they are is known only once they are made. So they are made when an artifact is planned, in memory, by a child
process: the package numbers its nodes from the start of the process, so that only a new one gives the same bytes every
time, and what it imports (transformers) stays out of ours. It is handed the model's tokenizer files and nothing else,
and may take so much time and memory and no more.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from quantkit.models.checkpoint import Checkpoint
from quantkit.supervisor import EXCEEDED, NUMBER_BYTES, supervised

PACKAGES = ("openvino", "openvino_tokenizers", "transformers")
NAMES = ("openvino_tokenizer", "openvino_detokenizer")
ENDINGS = (".xml", ".bin")
SECONDS, MEMORY = 300.0, 4 << 30
"""What a conversion may take: a vocabulary of 150,000 takes 2 s and 400 MB."""
INSTALL = "pip install 'quantkit[openvino]'"
CONVERT = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
sys.modules["torch"] = None  # half of the time would go into importing it
from openvino import serialize
from openvino_tokenizers import convert_tokenizer
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[2], trust_remote_code=False, local_files_only=True)
for model, name in zip(convert_tokenizer(tokenizer, with_detokenizer=True), sys.argv[3:]):
    serialize(model, f"{sys.argv[2]}/{name}.xml")
"""


@dataclass(frozen=True, slots=True)
class TextGraphs:
    """files: name to bytes, none where they could not be made; then notes say why."""

    files: Mapping[str, bytes]
    notes: tuple[str, ...] = ()


def tokenizer_files(model: Checkpoint) -> TextGraphs:
    """The graphs of the tokenizer that lies among the files of `model`."""
    given = {name: read() for name, read in sorted(model.files.items()) if _is_text(name)}
    if not any(name in given for name in ("tokenizer.json", "tokenizer.model")):
        return TextGraphs({}, ("no tokenizer: OpenVINO GenAI takes token ids only",))
    if not all(map(importlib.util.find_spec, PACKAGES)):
        return TextGraphs({}, (f"without a tokenizer graph OpenVINO GenAI takes token ids only: {INSTALL}",))
    return _converted(tuple(given.items()))


def tokenizer_version() -> str | None:
    """Which release of openvino-tokenizers makes the graphs, on which their bytes depend; None without it."""
    try:
        return metadata.version("openvino-tokenizers")
    except metadata.PackageNotFoundError:
        return None


def _is_text(name: str) -> bool:
    return name.startswith(("tokenizer", "chat_template")) or name in ("added_tokens.json", "special_tokens_map.json")


@lru_cache(maxsize=4)
def _converted(given: tuple[tuple[str, bytes], ...]) -> TextGraphs:
    """The graphs of tokenizer files: the same files give the same bytes."""
    with tempfile.TemporaryDirectory(prefix="quantkit-tokenizer-") as name:
        folder = Path(name)
        for file, data in given:
            (folder / file).write_bytes(data)
        command = [sys.executable, "-I", "-c", CONVERT, json.dumps(sys.path), name, *NAMES]
        problem = _run(command)
        if problem is not None:
            return _unconverted(problem)
        return TextGraphs({n + e: (folder / (n + e)).read_bytes() for n in NAMES for e in ENDINGS})


def _run(command: list[str]) -> str | None:
    """Run a child under a supervisor; why it failed, or None."""
    with tempfile.TemporaryFile(buffering=0) as limit:
        limit.write(MEMORY.to_bytes(NUMBER_BYTES, "little"))
        watched, number = supervised(command, limit.fileno()), limit.fileno()
        try:
            done = subprocess.run(
                watched, pass_fds=(number,), capture_output=True, text=True, check=False, timeout=SECONDS
            )
        except subprocess.TimeoutExpired:
            return f"no answer within {SECONDS:g} s"
    if not done.returncode:
        return None
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return f"it takes more than {MEMORY >> 20} MiB" if last.startswith(EXCEEDED) else last


def _unconverted(reason: str) -> TextGraphs:
    return TextGraphs({}, (f"openvino-tokenizers makes no graph of this tokenizer, GenAI takes ids only: {reason}",))
