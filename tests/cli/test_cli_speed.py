"""The command line answers at once, because nothing heavy is imported before it is needed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

HEAVY = {
    "compressed_tensors",
    "gguf",
    "jinja2",
    "llama_cpp",
    "mlx",
    "onnxruntime",
    "openvino",
    "pandas",
    "pyarrow",
    "safetensors",
    "sentencepiece",
    "tokenizers",
    "torch",
    "transformers",
    "vllm",
    "xllamacpp",
}
MAX_HELP_SECONDS = 0.5


def packages_loaded_by(program: str) -> set[str]:
    """Top-level packages that a fresh interpreter holds after `program`."""
    shown = f"{program}\nimport sys\nprint('loaded', *sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_the_import_of_quantkit_pulls_neither_torch_nor_any_engine():
    loaded = packages_loaded_by("import quantkit")
    assert "quantkit" in loaded
    assert not loaded & (HEAVY | {"numpy"})


@pytest.mark.parametrize("arguments", [[], ["export"], ["formats"]], ids=["quantkit", "export", "formats"])
def test_help_pulls_neither_torch_nor_any_engine(arguments):
    loaded = packages_loaded_by(f"from quantkit.cli.app import main\nmain([*{arguments!r}, '--help'])")
    assert "typer" in loaded
    assert not loaded & HEAVY


def test_help_answers_within_half_a_second():
    best = min(seconds_of_help() for _ in range(5))
    assert best < MAX_HELP_SECONDS


def seconds_of_help() -> float:
    """Wall time of `quantkit --help` in a fresh interpreter."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "quantkit", "--help"], capture_output=True, text=True, check=True)
    assert "export" in done.stdout
    return time.perf_counter() - start


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq"])
def test_planning_pulls_neither_torch_nor_any_engine(method):
    model = Path(__file__).resolve().parents[2] / "golden" / "model"
    arguments = ["plan", str(model), "--method", method, "--to", "gguf", "--json"]
    loaded = packages_loaded_by(f"from quantkit.cli.app import main\nmain({arguments!r})")
    assert "typer" in loaded
    assert not loaded & HEAVY
