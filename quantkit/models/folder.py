"""A Hugging Face model folder, opened strictly: config, weights (one file or shards with an index), small files.

Only `*.safetensors`, `*.json`, `*.jinja` and `tokenizer*` are read. Files and config keys that hold or name code are
never opened; a note says so, and another names the other files that stay behind. Opening reads headers, no tensor data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from quantkit.errors import (
    BadOption,
    IncompleteCheckpoint,
    InconsistentCheckpoint,
    ReadFailed,
    UnsafePath,
    UnsupportedModel,
    escaped,
)
from quantkit.files.json_file import read_json
from quantkit.files.safetensors_file import open_safetensors
from quantkit.files.shard_index import INDEX_NAME, SHARD_COUNT, ShardIndex, read_index
from quantkit.files.source_file import SourceFile, resolved
from quantkit.models.family.multimodal import is_multimodal, text_config
from quantkit.models.family.tensor_names import own_names
from quantkit.models.remote_config import AUTO_MAP, CONFIG_CLASS_FILE
from quantkit.models.spec import BLOCKS, EMBEDDING, HEAD, ModelSpec, Role, TensorSlot, parse_config
from quantkit.tensors.cast import FLOATS
from quantkit.tensors.views import TensorView, Weight

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
MAX_CONFIG_BYTES = 1 << 20
MAX_SMALL_FILE_BYTES = 64 << 20

_SMALL_FILES = ("added_tokens.json", "chat_template.json", "generation_config.json", "special_tokens_map.json")
_TEMPLATE_FOLDER = "additional_chat_templates"
_OWN_FILES = ("quantkit.json", "config.json", "quantize_config.json")
"""Read by whoever knows the container, and written anew."""
_TOKENIZER_SUFFIXES = (".json", ".model", ".txt")
_CODE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".py")
_CODE_KEYS = ("auto_map", "trust_remote_code", "_attn_implementation_internal")

_COMPUTED = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")
"""Tables that old checkpoints carry and that the config determines."""

AnyWeight = TypeVar("AnyWeight", bound=Weight)


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
        UnsupportedModel: an adapter lies in the folder.
        MalformedFile, IncompleteFile, UnsafePath, UnsupportedModel, ReadFailed: from the files themselves.
    """
    names = file_names(path)
    _refuse_adapter(path, names)
    config = read_json(_member(path, CONFIG_NAME), limit=MAX_CONFIG_BYTES)
    index = _index(path, names)
    shards = index.shards if index else (_single_file(path, names),)
    tensors = _open_shards(path, shards, index)
    notes = _notes(config, names, shards, index, tensors)
    if is_multimodal(config):
        config = text_config(config, tensors, where=str(path / CONFIG_NAME))
    named = own_names(tensors, lambda: _slot_names(config, path), where=str(path))
    travelling = [name for name in names if _travels(name)] + _further_templates(path, names)
    files = {name: _reader(path, name) for name in travelling}
    inputs = tuple(path / shard for shard in shards)
    told = tuple(map(escaped, (*notes, *named.notes)))
    return Folder(path, config, named.tensors, files, inputs, bool(named.notes), told)


def file_names(path: Path) -> list[str]:
    """Names of everything in the folder `path`, sorted; raises `BadOption` (no folder) or `ReadFailed`."""
    try:
        return sorted(entry.name for entry in path.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        raise BadOption(f"{path} is not a folder") from None
    except OSError as error:
        raise ReadFailed(f"{path} cannot be read: {error.strerror}") from error


def select_weights(tensors: Mapping[str, AnyWeight], spec: ModelSpec, where: str) -> dict[str, AnyWeight]:
    """Exactly the tensors of `spec.slots()`, in that order.

    Left out are tables that the config determines (`rotary_emb.*`), and a head that repeats the tied embedding byte
    for byte (the only case in which tensor data is read).

    Raises:
        IncompleteCheckpoint: a tensor is missing.
        InconsistentCheckpoint: a wrong shape, a tensor that the model does not have, or a tied head that differs.
        UnsupportedModel: a dense weight that is not F32, F16 or BF16.
    """
    slots = {slot.name: slot for slot in spec.slots()}
    missing = [name for name in slots if name not in tensors]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        head_only = '; config.json may lack "tie_word_embeddings": true' if missing == [HEAD] else ""
        raise IncompleteCheckpoint(
            f"{where}: tensor {missing[0]!r}{more} is missing", hint=f"download the whole model{head_only}"
        )
    for slot in slots.values():
        _check_weight(tensors[slot.name], slot, where)
    for name in tensors:
        if name not in slots and not name.endswith(_COMPUTED):
            _check_surplus(name, tensors, spec, where)
    return {name: tensors[name] for name in slots}


def _member(folder: Path, name: str) -> Path:
    """`folder / name` if it, links followed, lies in the folder or in the blobs of the folder's Hub cache."""
    root, location = resolved(folder), resolved(folder / name)
    hub_blobs = root.parent.parent / "blobs"
    if location.is_relative_to(root) or (root.parent.name == "snapshots" and location.parent == hub_blobs):
        return folder / name
    raise UnsafePath(
        f"{folder / name} is a link to a file outside the model's folder", hint="copy the file into the folder"
    )


def _index(path: Path, names: Sequence[str]) -> ShardIndex | None:
    if INDEX_NAME not in names:
        return None
    index = read_index(_member(path, INDEX_NAME))
    missing = [shard for shard in index.shards if shard not in names]
    if missing:
        raise IncompleteCheckpoint(
            f"{path}: shard {missing[0]!r} is missing ({len(missing)} of {len(index.shards)} shards)",
            hint="finish the download, then run again",
        )
    if WEIGHTS_NAME in names and WEIGHTS_NAME not in index.shards:
        raise InconsistentCheckpoint(
            f"{path} holds both {WEIGHTS_NAME} and {INDEX_NAME} with other files",
            hint="keep one set of weights in the folder",
        )
    return index


def _single_file(path: Path, names: Sequence[str]) -> str:
    weights = [name for name in names if name.endswith(".safetensors")]
    if WEIGHTS_NAME in weights:
        return WEIGHTS_NAME
    if len(weights) == 1 and not _is_part(weights[0]):
        return weights[0]
    if weights:
        raise IncompleteCheckpoint(
            f"{path} holds {len(weights)} of several .safetensors files ({weights[0]!r}) and no {INDEX_NAME}",
            hint="download the index as well",
        )
    unread = sum(name.endswith(_CODE_SUFFIXES) and not name.endswith(".py") for name in names)
    found = f"; its {unread} pickle files (.bin, .pt ...) are not read" if unread else ""
    raise IncompleteCheckpoint(
        f"{path} holds no .safetensors file{found}", hint="download the safetensors version of the model"
    )


def _is_part(name: str) -> bool:
    match = SHARD_COUNT.search(name)
    return match is not None and int(match[1]) > 1


def _open_shards(path: Path, shards: Sequence[str], index: ShardIndex | None) -> dict[str, TensorView]:
    tensors: dict[str, TensorView] = {}
    for shard in shards:
        views = open_safetensors(_member(path, shard))
        if index is not None:
            _check_shard(path, shard, views, index)
        tensors.update(views)
    if index is not None:
        for name, shard in index.weight_map.items():
            if name not in tensors:
                raise InconsistentCheckpoint(
                    f"{path}: the index puts tensor {name[:80]!r} into {shard!r}, which lacks it"
                )
    return tensors


def _check_shard(path: Path, shard: str, views: Mapping[str, TensorView], index: ShardIndex) -> None:
    for name in views:
        planned = index.weight_map.get(name)
        if planned != shard:
            says = f"puts it into {planned!r}" if planned else "does not list it"
            raise InconsistentCheckpoint(
                f"{path}: tensor {name!r} lies in {shard!r}, but the index {says}",
                hint="the folder mixes files of different downloads; download it anew",
            )


def _notes(
    config: Mapping[str, Any],
    names: Sequence[str],
    shards: Sequence[str],
    index: ShardIndex | None,
    tensors: Mapping[str, TensorView],
) -> list[str]:
    ours = config.get("auto_map") == AUTO_MAP
    notes = [
        f"{CONFIG_NAME}: {key} asks for code, which is neither run nor copied"
        for key in _CODE_KEYS
        if config.get(key) and not (ours and key == "auto_map")
    ]
    notes += [
        f"{name} is not part of the model (not in the index) and is not read"
        for name in names
        if name.endswith(".safetensors") and name not in shards
    ]
    unread = [name for name in names if name.endswith(_CODE_SUFFIXES) and not (ours and name == CONFIG_CLASS_FILE)]
    if unread:
        notes.append(f"{len(unread)} files that hold code or pickles are not read: {', '.join(unread)[:80]}")
    left = [name for name in names if not (_is_known(name) or name in shards or name in unread)]
    if left:
        more = f" and {len(left) - 8} more" if len(left) > 8 else ""
        notes.append(f"left behind: {', '.join(left[:8])}{more}")
    total = sum(view.nbytes for view in tensors.values())
    if index is not None and index.total_size not in (None, total):
        notes.append(f"{INDEX_NAME}: total_size says {index.total_size:,} bytes, the shards hold {total:,}")
    return notes


def _slot_names(config: Mapping[str, Any], path: Path) -> list[str]:
    return [slot.name for slot in parse_config(config, where=str(path / CONFIG_NAME)).slots()]


def _travels(name: str) -> bool:
    """Whether a small file belongs to what is written: tokenizer, templates, generation defaults; never code."""
    tokenizer = name.startswith("tokenizer") and name.endswith(_TOKENIZER_SUFFIXES)
    return tokenizer or name.endswith(".jinja") or name in _SMALL_FILES


def _is_known(name: str) -> bool:
    """Whether a file travels, is read or told elsewhere, or belongs to the folder rather than to the model."""
    known = name in _OWN_FILES or name in (INDEX_NAME, CONFIG_CLASS_FILE, _TEMPLATE_FOLDER)
    return known or _travels(name) or name.endswith(".safetensors") or name.startswith(".")


def _further_templates(path: Path, names: Sequence[str]) -> list[str]:
    """The templates beside chat_template.jinja, each with its sub folder's name before its own."""
    if _TEMPLATE_FOLDER not in names or not (path / _TEMPLATE_FOLDER).is_dir():
        return []
    folder = _member(path, _TEMPLATE_FOLDER)
    return [f"{_TEMPLATE_FOLDER}/{name}" for name in file_names(folder) if name.endswith(".jinja")]


def _refuse_adapter(path: Path, names: Sequence[str]) -> None:
    """transformers applies an adapter that lies beside the weights, so the weights alone are another model."""
    found = [name for name in names if name == "adapter_config.json" or name.startswith("adapter_model.")]
    if found:
        raise UnsupportedModel(
            f"{path} holds an adapter ({', '.join(found)[:120]}), which is not part of the weights",
            hint="merge it into the base model first (peft: merge_and_unload), or take its files out of the folder",
        )


def _reader(path: Path, name: str) -> Callable[[], bytes]:
    file = SourceFile.open(_member(path, name))
    return lambda: file.read_all(MAX_SMALL_FILE_BYTES)


def _check_weight(weight: Weight, slot: TensorSlot, where: str) -> None:
    if weight.shape != slot.shape:
        raise InconsistentCheckpoint(
            f"{where}: tensor {slot.name!r} is {_spelled(weight.shape)}, config.json makes it {_spelled(slot.shape)}",
            hint="config.json and the weights are of different models" + _vocabulary_hint(slot),
        )
    if isinstance(weight, TensorView) and weight.dtype not in FLOATS.values():
        raise UnsupportedModel(
            f"{where}: tensor {slot.name!r} is {weight.dtype}; dense weights must be float32, float16 or bfloat16"
        )


def _vocabulary_hint(slot: TensorSlot) -> str:
    return " (vocab_size against the rows of the embedding)" if slot.role in (Role.EMBED, Role.LM_HEAD) else ""


def _spelled(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _check_surplus(name: str, tensors: Mapping[str, Weight], spec: ModelSpec, where: str) -> None:
    """A tensor that no slot asks for: fine only as the copy of a tied embedding."""
    if name == HEAD and spec.tie_word_embeddings:
        if not _same_values(tensors[EMBEDDING], tensors[HEAD]):
            raise InconsistentCheckpoint(
                f"{where}: config.json ties the embeddings, but {HEAD!r} differs from {EMBEDDING!r}",
                hint='say "tie_word_embeddings": false in config.json if the head is meant to be its own',
            )
        return
    layer = name.removeprefix(BLOCKS).split(".")[0]
    if name.startswith(BLOCKS) and layer.isdecimal() and int(layer) >= spec.num_hidden_layers:
        raise InconsistentCheckpoint(
            f"{where}: tensor {name!r} belongs to layer {layer}, config.json has {spec.num_hidden_layers} layers",
            hint="mend num_hidden_layers in config.json",
        )
    raise InconsistentCheckpoint(
        f"{where}: tensor {name!r} is not part of such a model",
        hint="config.json and the weights are of different models",
    )


def _same_values(one: Weight, other: Weight) -> bool:
    """Whether two dense tensors are equal byte for byte, read in chunks."""
    if not isinstance(one, TensorView) or not isinstance(other, TensorView):
        return False
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    pairs = zip(one.chunks(), other.chunks(), strict=True)
    return all(np.array_equal(a.view(np.uint8), b.view(np.uint8)) for a, b in pairs)
