"""Output bytes depend on inputs and options only.

Every verb that writes runs twice in child processes that differ in all that must not matter: threads, working
directory, hash seed, the arithmetic library's own thread count, clock and output folder. The second run is also the
first one's repetition. The model is random, with the golden model's tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.tiny import write_tiny_checkpoint

ROOT = Path(__file__).resolve().parents[2]
THREADS = (1, 2)
GPTQ = ("--method", "gptq", "--bits", "4", "--group-size", "128", "--samples", "4", "--length", "32")


def quantkit(*arguments: str | Path, cwd: Path, threads: int) -> None:
    """Run the command line in a process whose surroundings follow from `threads`."""
    surroundings = {"PYTHONHASHSEED": str(threads), "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    surroundings |= {"TZ": f"UTC-{threads}", "USER": f"user{threads}", "COLUMNS": str(60 + 40 * threads)}
    cwd.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "quantkit", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=os.environ | surroundings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder`, by relative name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def dense(golden_model, tmp_path_factory) -> Path:
    """A random bfloat16 model that can write its own calibration text."""
    model = write_tiny_checkpoint(tmp_path_factory.mktemp("dense") / "model", vocab=2048, intermediate=768)
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "added_tokens.json"):
        shutil.copy(golden_model / name, model)
    return model


@pytest.fixture(scope="module")
def quantized(dense, tmp_path_factory) -> tuple[Path, Path]:
    """That model quantized with GPTQ on text of its own, once on one thread and once on two."""
    homes = [tmp_path_factory.mktemp(f"quantize-{threads}-threads") for threads in THREADS]
    for home, threads in zip(homes, THREADS, strict=True):
        arguments = ("quantize", dense, *GPTQ, "--threads", str(threads))
        quantkit(*arguments, "--out", home / "out" / "int4", cwd=home / "out", threads=threads)
    return homes[0] / "out" / "int4", homes[1] / "out" / "int4"


def test_gptq_gives_the_same_bytes_on_one_and_two_threads(quantized):
    first, second = map(digests, quantized)
    assert "quantkit.json" in first
    assert first == second


@pytest.mark.parametrize(
    ("source", "arguments"),
    [
        ("dense", ("gguf", "--type", "q8_0")),
        ("dense", ("gguf", "--type", "f16", "--arch", "llama")),
        ("dense", ("hf", "--type", "f16")),
        ("dense", ("hf", "--type", "bf16", "--arch", "llama")),
        ("quantized", ("gguf", "--type", "q4_0")),
        ("quantized", ("hf", "--type", "bf16")),
        ("quantized", ("compressed-tensors",)),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value).replace("---", "-"),
)
def test_export_gives_the_same_bytes_wherever_and_however_it_runs(
    source: str, arguments: Sequence[str], dense, quantized, tmp_path
):
    model = dense if source == "dense" else quantized[0]
    found = []
    for threads in THREADS:
        home = tmp_path / f"run-{threads}"
        # One run names its source from where it stands, the other from the root.
        shown = Path(os.path.relpath(model, home)) if threads == 1 else model
        quantkit("export", arguments[0], shown, *arguments[1:], "--out", home / "made", cwd=home, threads=threads)
        found.append(digests(home))
    assert any(name.endswith("quantkit.json") for name in found[0])
    assert found[0] == found[1]


def test_everything_that_calibration_computes_is_computed_on_the_device(golden_model):
    """See `tests.support.elsewhere`. Where a scale falls on the other side of a rounding boundary, codes after it
    move, and many where rows make up for each other, at the same errors; otherwise a hundredth is a lot."""
    registration = pytest.importorskip("torch.utils.backend_registration")
    if not hasattr(registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch knows no devices written in Python")
    command = [sys.executable, "-m", "tests.support.elsewhere", str(golden_model)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["same text"]
    for way, outcome in found["ways"].items():
        assert outcome["different"] < (0.5 if "weighed" in way else 0.01), way
        assert outcome["errors"][1] == pytest.approx(outcome["errors"][0], rel=0.1)
