"""Which files a piece of code opens."""

from __future__ import annotations

import os

import pytest

from quantkit.files import source_file


def opened_paths(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every path that quantkit opens from now on, links resolved; the list grows."""
    paths: list[str] = []
    real = os.open

    def recorded(path: str, flags: int) -> int:
        paths.append(os.path.realpath(path))
        return real(path, flags)

    monkeypatch.setattr(source_file.os, "open", recorded)
    return paths
