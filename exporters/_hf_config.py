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
from quantkit.models.spec import ModelSpec


def native_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The checkpoint's own config with tie_word_embeddings and rope_theta spoken out, and only a padding that is there.

    Whatever describes how the source was stored (`quantization_config`) is left out; the caller says how it writes.
    """
    config = dict(checkpoint.config)
    config.pop("quantization_config", None)
    config["tie_word_embeddings"] = checkpoint.spec.tie_word_embeddings
    config["rope_theta"] = checkpoint.spec.rope.theta
    if "pad_token_id" in config:
        config["pad_token_id"] = checkpoint.spec.pad_token_id
    return config


def with_dtype(config: Mapping[str, Any], dtype: np.dtype) -> dict[str, Any]:
    """`config` that says its weights are `dtype`: under `torch_dtype`, and `dtype` where that newer name stands."""
    names = ["torch_dtype", "dtype"] if "dtype" in config else ["torch_dtype"]
    return {**config, **dict.fromkeys(names, dtype.name)}


def config_file(config: Mapping[str, Any]) -> PlannedFile:
    """`config` as config.json: keys sorted, two spaces, a newline at the end."""
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    return blob("config.json", text.encode())


def config_files(spec: ModelSpec, config: Mapping[str, Any]) -> tuple[PlannedFile, ...]:
    """`config` as config.json; for a native MiniCPM also its config class, and an `auto_map` that names it."""
    if spec.architecture != "minicpm":
        return (config_file(config),)
    named = {**config, "auto_map": AUTO_MAP, "model_type": "minicpm"}
    return (config_file(named), blob(CONFIG_CLASS_FILE, CONFIG_CLASS.encode()))
