"""What killed runs left beside their outputs: named with its size, so that nothing grows unseen.

A name is recognised by its form and its owner, and told of only when no living process holds it. What belongs to the
output that is being written is cleaned up by `quantkit.artifacts.publishing`; what belongs to others is left to them.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from quantkit.artifacts.hidden_names import LOCK, OLD, RUN, STAGE, WORK, beside, output_of
from quantkit.artifacts.output_paths import size_text

WORDS = {
    STAGE: "an unfinished output; the next command that writes {output} removes it",
    OLD: "what was to be replaced; the next command that writes {output} puts it back or removes it",
    WORK: "finished work of a run; the same command again continues it",
}


def leftovers(folder: str | Path) -> tuple[str, ...]:
    """One line for each folder that a killed run left in `folder`: its name, its size, and what becomes of it."""
    try:
        paths = sorted(Path(folder).iterdir())
    except OSError:
        return ()
    lines = []
    for path in paths:
        found = output_of(path)
        if found is not None and found[1] in WORDS and _is_own_folder(path) and not is_held(found[0]):
            words = WORDS[found[1]].format(output=found[0].name)
            lines.append(f"{path} ({size_text(_size(path))}) is left of a run that was killed: {words}")
    return tuple(lines)


def is_held(output: Path) -> bool:
    """Whether a living process works on `output`, as far as the process ids in its locks tell."""
    for kind in (LOCK, RUN):
        try:
            holder = int(beside(output, kind).read_bytes()[:20])
            os.kill(holder, 0)
        except (OSError, ValueError, OverflowError) as error:
            if isinstance(error, PermissionError):
                return True
            continue
        return True
    return False


def _is_own_folder(path: Path) -> bool:
    try:
        state = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(state.st_mode) and state.st_uid == os.geteuid()


def _size(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(place) / name).lstat().st_blocks * 512
            except OSError:
                continue
    return total
