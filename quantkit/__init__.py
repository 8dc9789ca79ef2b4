"""quantkit: MiniCPM models in every form that a device can run, each proved to still be the model."""

from __future__ import annotations

from pathlib import Path

__version__ = "0.1.0"

# In a bare checkout `exporters/` and `runtimes/` lie beside this folder; installed, they lie inside it.
if (Path(__file__).parent.parent / "pyproject.toml").is_file():
    __path__.append(str(Path(__file__).parent.parent))
