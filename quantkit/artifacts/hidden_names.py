"""The dotted names beside an output that its makers use on the way, and that only a killed run leaves behind."""

from __future__ import annotations

from pathlib import Path

LOCK, STAGE, OLD, RUN, WORK = "lock", "part", "old", "run", "work"
"""What a name stands for, see `quantkit.artifacts.publishing` and `quantkit.artifacts.journal`."""
MARK = ".quantkit-"


def beside(output: Path, kind: str) -> Path:
    """`.NAME.quantkit-KIND` beside the output NAME."""
    return output.with_name(f".{output.name}{MARK}{kind}")


def output_of(path: Path) -> tuple[Path, str] | None:
    """The output that a dotted name belongs to, and its kind; None where it is no such name."""
    name, mark, kind = path.name.rpartition(MARK)
    if not mark or kind not in (LOCK, STAGE, OLD, RUN, WORK) or len(name) < 2 or not name.startswith("."):
        return None
    return path.with_name(name[1:]), kind
