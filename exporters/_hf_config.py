"""`config.json` of the folders that exporters write.

The remote code of MiniCPM ties embeddings and takes rope_theta 10000 when the config says nothing; generic loaders
assume the opposite. So whatever quantkit writes says both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from quantkit.files.planned_files import PlannedFile, blob
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.remote_config import AUTO_MAP, CONFIG_CLASS, CONFIG_CLASS_FILE
from quantkit.models.spec import ModelSpec, architecture


def native_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The config of the checkpoint's model, made from its `ModelSpec`.

    Nothing else of the source's config is carried: a key that nobody here knows may ask an engine for code, and what
    describes how the source was stored (`quantization_config`) is said anew by the caller.
    """
    return architecture(checkpoint.spec.architecture).config(checkpoint.spec, checkpoint.config)


def with_dtype(config: Mapping[str, Any], dtype: np.dtype) -> dict[str, Any]:
    """`config` that says its weights are `dtype`."""
    return {**config, "torch_dtype": dtype.name}


def config_file(config: Mapping[str, Any]) -> PlannedFile:
    """`config` as config.json: keys sorted, two spaces, a newline at the end."""
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    return blob("config.json", text.encode())


def config_files(spec: ModelSpec, config: Mapping[str, Any], *, config_class: bool = True) -> tuple[PlannedFile, ...]:
    """`config` as config.json; for a native MiniCPM also its config class, and an `auto_map` that names it.

    config_class: whether the container's engines want that; transformers asks its user before it runs one.
    """
    if spec.architecture != "minicpm" or not config_class:
        return (config_file(config),)
    named = {**config, "auto_map": AUTO_MAP}
    return (config_file(named), blob(CONFIG_CLASS_FILE, CONFIG_CLASS.encode()))
