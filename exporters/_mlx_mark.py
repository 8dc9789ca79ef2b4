"""How a folder says that it is MLX's, whatever lies in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantkit.errors import QuantkitError
from quantkit.files.member import open_member
from quantkit.models.folder import read_folder_config
from quantkit.models.layouts.small_files import file_names

QUANTIZATION = "quantization"
"""The key of config.json by which mlx-lm knows quantized weights; it writes the same as `quantization_config`."""
_MARK = re.compile(rb'"format"\s*:\s*"mlx"')
_LOOKED_AT = 4096
"""Bytes from the start of a weights file: MLX sorts the header by name, and `__metadata__` comes before any tensor."""


def is_mlx(path: Path) -> bool:
    """Whether the folder `path` has `quantization` in its config, or no quantization and weights that MLX wrote."""
    try:
        config = read_folder_config(path)
        return holds_settings(config) or (not config.get("quantization_config") and _is_marked(path))
    except QuantkitError:
        return False


def holds_settings(config: Mapping[str, Any]) -> bool:
    """Whether a config has an object of that name."""
    settings = config.get(QUANTIZATION)
    return isinstance(settings, Mapping) and bool(settings)


def _is_marked(path: Path) -> bool:
    name = next((name for name in file_names(path) if name.endswith(".safetensors")), None)
    if name is None:
        return False
    file = open_member(path, name)
    return _MARK.search(file.read(0, min(file.size, _LOOKED_AT)).tobytes().partition(b'"data_offsets"')[0]) is not None
