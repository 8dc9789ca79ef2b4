"""Two renames that `os` does not offer: one that never replaces, and one that exchanges two names in a single step.

Linux has both as `renameat2(2)`. Elsewhere, and on file systems without it, the nearest thing is done instead.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

AT_FDCWD = -100
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2


def move_new(source: Path, target: Path) -> None:
    """Rename `source` to `target`, which must not exist.

    Without kernel support there is an instant between looking and renaming in which a foreign file could appear.

    Raises:
        FileExistsError: `target` exists.
        OSError: any other refusal.
    """
    if _renameat2(source, target, RENAME_NOREPLACE):
        return
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    source.rename(target)


def exchange(first: Path, second: Path) -> bool:
    """Let two existing names trade places in one step; False where that cannot be done. Raises OSError."""
    return _renameat2(first, second, RENAME_EXCHANGE)


def _renameat2(source: Path, target: Path, flags: int) -> bool:
    if sys.platform != "linux":
        return False
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return False
    function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    if function(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), flags) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(source), None, str(target))
