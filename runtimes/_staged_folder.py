"""What an engine is handed in place of a model's folder: our config.json, and links to the weights.

A config.json may name code that an engine then imports or fetches from a hub (`auto_map`, `_attn_implementation`,
`experts_implementation`, keys of later versions), and so may every other JSON file beside it. Here the engine sees
those keys alone that a `ModelSpec` is made from, which quantkit has read and understood, in the words of the folder:
that a witness reads them by itself is what it is asked for. `quantization_config` is what the container's own reader
took; the weights are the files themselves.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from quantkit.files.shard_index import INDEX_NAME
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.layouts.shards import WEIGHTS_NAME
from quantkit.models.layouts.small_files import CONFIG_NAME
from quantkit.models.remote_config import AUTO_MAP, CONFIG_CLASS, CONFIG_CLASS_FILE
from quantkit.models.spec import architecture

SETTINGS = "quantization_config"
SETTINGS_FILES = ("quantize_config.json", "quant_config.json")
"""Where older writers put what `quantization_config` says; read where config.json has none."""


@contextmanager
def staged_folder(checkpoint: Checkpoint, settings: str = SETTINGS) -> Iterator[Path]:
    """A folder for an engine to load `checkpoint` from, which lies in a folder; removed when the engine has loaded.

    settings: the key of config.json by which the engine knows quantized weights.
    """
    with TemporaryDirectory(prefix="quantkit-engine-") as name:
        folder = Path(name)
        config = architecture(checkpoint.spec.architecture).understood(checkpoint.config)
        if checkpoint.config.get(settings):
            config[settings] = checkpoint.config[settings]
        if checkpoint.spec.architecture == "minicpm":
            config["auto_map"] = AUTO_MAP
            (folder / CONFIG_CLASS_FILE).write_text(CONFIG_CLASS, encoding="utf-8")
        (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2), encoding="utf-8")
        for link, file in _links(checkpoint, linked_settings=settings == SETTINGS and SETTINGS not in config).items():
            (folder / link).symlink_to(file.resolve())
        yield folder


def _links(checkpoint: Checkpoint, *, linked_settings: bool) -> dict[str, Path]:
    """Name in the staged folder to the file that it stands for."""
    beside = {name: checkpoint.path / name for name in (INDEX_NAME, *(SETTINGS_FILES if linked_settings else ()))}
    found = {name: file for name, file in beside.items() if file.is_file()}
    if INDEX_NAME not in found and len(checkpoint.inputs) == 1:  # engines look for this name alone
        return {**found, WEIGHTS_NAME: checkpoint.inputs[0]}
    return {**found, **{file.name: file for file in checkpoint.inputs}}
