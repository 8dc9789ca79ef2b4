"""A stopped run goes on only with the code that began it: which files count as that code."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.faults import ROOT

CHANGED = (
    "quantkit/solver/__init__.py",
    "quantkit/tensors/packing.py",
    "quantkit/methods/rtn.py",
    "quantkit/calibration/own_text/prompts.txt",
    "exporters/hf.py",
    "exporters/gguf/blocks.py",
    "runtimes/transformers.py",
)
PROBE = """
import sys
from pathlib import Path
from quantkit.pipeline.resumption import _code_digest
found = [_code_digest()]
for name in sys.argv[1:]:
    path = Path(name)
    before = path.read_bytes()
    path.write_bytes(before + b"\\n")
    found.append(_code_digest())
    path.write_bytes(before)
found.append(_code_digest())
print(*found)
"""


def installed(folder: Path) -> tuple[str, ...]:
    """The changed files where packaging puts them: plug-ins inside the package."""
    for room in ("exporters", "runtimes"):
        shutil.move(folder / room, folder / "quantkit" / room)
    (folder / "pyproject.toml").unlink()
    return tuple(name if name.startswith("quantkit/") else f"quantkit/{name}" for name in CHANGED)


@pytest.mark.parametrize("layout", ["checkout", "installed"])
def test_every_file_of_the_package_counts(layout: str, tmp_path: Path) -> None:
    for name in ("quantkit", "exporters", "runtimes"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    changed = CHANGED if layout == "checkout" else installed(tmp_path)
    command = [sys.executable, "-c", PROBE, *changed]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    first, *after, last = done.stdout.split()
    assert first == last
    assert len({first, *after}) == 1 + len(changed)
