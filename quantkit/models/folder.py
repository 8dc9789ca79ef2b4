"""A Hugging Face model folder, opened strictly: config, weights (one file or shards with an index), small files.

Only `*.safetensors`, `*.json`, `*.jinja` and `tokenizer*` are read. Files and config keys that hold or name code are
never opened; a note says so, and another names the other files that stay behind. Opening reads headers, and tensor
data only where two shards hold one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import UnsupportedModel, one_line
from quantkit.files.member import read_member_json
from quantkit.models.family.multimodal import is_multimodal, text_config
from quantkit.models.family.tensor_names import own_names
from quantkit.models.layouts.shards import open_shards
from quantkit.models.layouts.small_files import (
    CONFIG_NAME,
    MAX_CONFIG_BYTES,
    check_links,
    config_notes,
    file_names,
    file_notes,
    template_folder,
    travelling_files,
)
from quantkit.models.layouts.unreadable import refuse_adapter, refuse_adapter_tensors
from quantkit.models.recognition import parse_config
from quantkit.tensors.views import TensorView

_SHADOW = "._"
"""First characters of files that macOS writes beside others on foreign disks; they hold nothing of a model."""


@dataclass(frozen=True, slots=True, eq=False)
class Folder:
    """A model folder whose files agree with each other; not yet checked against a `ModelSpec`.

    config: config.json; of a multimodal model, the part that describes its text model.
    tensors: every tensor of the weight files, by the name that the model gives it, in the order of files and data.
    files: tokenizer, templates, generation_config.json: name to a thunk that reads the bytes; the name of a further
        template begins with its sub folder, `additional_chat_templates/`.
    inputs: config.json's weights: the .safetensors files that were opened.
    renamed: whether the files call tensors otherwise than the model does.
    notes: what was left aside or does not add up, one line each.
    """

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorView]
    files: Mapping[str, Callable[[], bytes]]
    inputs: tuple[Path, ...]
    renamed: bool
    notes: tuple[str, ...]


def open_folder(path: Path) -> Folder:
    """Open the model folder `path`.

    Raises:
        BadOption: no such folder.
        IncompleteCheckpoint: config.json, the weights, a shard or an indexed tensor is missing.
        InconsistentCheckpoint: index and shards contradict each other, or two sets of weights lie there.
        UnsupportedModel: an adapter lies in the folder, or a part of another kind of model.
        MalformedFile, IncompleteFile, UnsafePath, UnsupportedModel, ReadFailed: from the files themselves.
    """
    names = [name for name in file_names(path) if not name.startswith(_SHADOW)]
    refuse_adapter(path, names)
    config = read_folder_config(path)
    check_links(path, names)
    if "_diffusers_version" in config:
        raise UnsupportedModel(
            f"{path} is a part of a pipeline of diffusers, which makes images", hint="only language models are read"
        )
    tensors, shards, shard_notes = open_shards(path, names)
    refuse_adapter_tensors(path, tensors)
    beside = [name for name in template_folder(path, names) if not name.endswith(".jinja")]
    notes = [*config_notes(config), *file_notes(config, names + beside, shards), *shard_notes]
    if is_multimodal(config):
        config = text_config(config, tensors, where=str(path / CONFIG_NAME))
    named = own_names(tensors, lambda: _slot_names(config, path), where=str(path))
    files = travelling_files(path, names)
    inputs, told = tuple(path / shard for shard in shards), tuple(map(one_line, (*notes, *named.notes)))
    return Folder(path, config, named.tensors, files, inputs, bool(named.notes), told)


def read_folder_config(path: Path) -> dict[str, Any]:
    """config.json of the model folder `path`; raises as `read_member_json`."""
    return read_member_json(path, CONFIG_NAME, limit=MAX_CONFIG_BYTES)


def _slot_names(config: Mapping[str, Any], path: Path) -> list[str]:
    return [slot.name for slot in parse_config(config, where=str(path / CONFIG_NAME)).slots()]
