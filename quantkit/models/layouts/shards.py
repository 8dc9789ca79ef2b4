"""The weight files of a folder: one, or shards with an index that agrees with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from quantkit.errors import IncompleteCheckpoint, InconsistentCheckpoint, UnsupportedModel, and_more
from quantkit.files.member import UNFINISHED, open_member
from quantkit.files.safetensors_file import open_safetensors
from quantkit.files.shard_index import INDEX_NAME, SHARD_COUNT, ShardIndex, read_index
from quantkit.models.layouts.selection import same_values
from quantkit.models.layouts.small_files import pickles
from quantkit.tensors.views import TensorView

WEIGHTS_NAME = "model.safetensors"

CONVERT_PICKLES = (
    "convert it, if you trust who made it, because pickles can run code: in transformers, "
    "AutoModelForCausalLM.from_pretrained(OLD).save_pretrained(NEW)"
)

_OTHER_BUILD = "index and shards are of different downloads: take both from one revision of the model"
_MISTRAL = "consolidated"
"""First word of the names of weights in the layout of Mistral and of Meta, whose tensors have other names."""


def open_shards(path: Path, names: Sequence[str]) -> tuple[dict[str, TensorView], tuple[str, ...], list[str]]:
    """Every tensor of the folder `path`, which holds files of these `names`.

    Returns:
        Tensors by name, in the order of files and data; the files' names; notes, one line each.

    Raises:
        IncompleteCheckpoint: weights, a shard or an indexed tensor is missing.
        InconsistentCheckpoint: index and shards contradict each other, or two sets of weights lie there.
        UnsupportedModel: weights in another layout only.
        MalformedFile, IncompleteFile, UnsafePath, ReadFailed: from the files themselves.
    """
    index = read_index(path) if INDEX_NAME in names else None
    if index is None:
        single = _single_file(path, names)
        return open_safetensors(open_member(path, single)), (single,), []
    _check_presence(path, names, index)
    shards = {name: open_safetensors(open_member(path, name)) for name in index.shards}
    notes = _check_repeats(path, shards, index)
    for name, views in shards.items():
        _check_shard(path, name, views, shards, index)
    tensors = {
        name: view for shard, views in shards.items() for name, view in views.items() if index.weight_map[name] == shard
    }
    for name, shard in index.weight_map.items():
        if name not in tensors:
            raise InconsistentCheckpoint(
                f"{path}: the index puts tensor {name[:80]!r} into {shard!r}, which lacks it", hint=_OTHER_BUILD
            )
    total = sum(view.nbytes for views in shards.values() for view in views.values())
    if index.total_size not in (None, total, sum(view.nbytes for view in tensors.values())):
        notes.append(f"{INDEX_NAME}: total_size says {index.total_size:,} bytes, the shards hold {total:,}")
    return tensors, index.shards, notes


def unfinished(path: Path, names: Sequence[str]) -> str:
    """A clause that names downloads of the folder that are not finished; empty where there are none."""
    begun = [name for name in names if name.endswith(UNFINISHED)]
    if ".cache" in names:  # where the Hub's client keeps what it downloads into a plain folder
        begun += sorted(entry.name for entry in (path / ".cache" / "huggingface" / "download").glob("*.incomplete"))
    verb = "are" if len(begun) > 1 else "is"
    return f"; {begun[0][:80]!r}{and_more(begun)} {verb} an unfinished download" if begun else ""


def _check_presence(path: Path, names: Sequence[str], index: ShardIndex) -> None:
    """Every shard is there, and no other set of weights beside them."""
    missing = [shard for shard in index.shards if shard not in names]
    others = [name for name in names if name.endswith(".safetensors") and name not in index.shards]
    if missing and len(missing) == len(index.shards) and others:
        raise InconsistentCheckpoint(
            f"{path}: {INDEX_NAME} names {missing[0]!r}{and_more(missing)}, none of which is there; {others[0]!r}"
            f"{and_more(others)} {'lies' if len(others) == 1 else 'lie'} there instead",
            hint=_OTHER_BUILD + (f", or remove the index if {others[0]} is whole" if len(others) == 1 else ""),
        )
    if missing:
        raise IncompleteCheckpoint(
            f"{path}: shard {missing[0]!r} is missing ({len(missing)} of {len(index.shards)} shards)"
            f"{unfinished(path, names)}",
            hint="finish the download, then run again",
        )
    if WEIGHTS_NAME in others:
        raise InconsistentCheckpoint(
            f"{path} holds both {WEIGHTS_NAME} and {INDEX_NAME} with other files",
            hint="keep one set of weights in the folder",
        )


def _single_file(path: Path, names: Sequence[str]) -> str:
    weights = [name for name in names if name.endswith(".safetensors")]
    if WEIGHTS_NAME in weights:
        return WEIGHTS_NAME
    if weights and all(name.startswith(_MISTRAL) for name in weights):
        raise UnsupportedModel(
            f"{path}: {weights[0]!r} is of Mistral's own layout, whose tensors have other names and order",
            hint="download the version for transformers: model*.safetensors and config.json",
        )
    if len(weights) == 1 and not _is_part(weights[0]):
        return weights[0]
    if weights:
        raise IncompleteCheckpoint(
            f"{path} holds {len(weights)} of several .safetensors files ({weights[0]!r}) and no {INDEX_NAME}"
            f"{unfinished(path, names)}",
            hint="download the index as well",
        )
    unread = len(pickles(names))
    found = f"; its {unread} pickle files (.bin, .pt ...) are not read" if unread else ""
    raise IncompleteCheckpoint(
        f"{path} holds no .safetensors file{found}{unfinished(path, names)}",
        hint="download the safetensors version of the model" + (f", or {CONVERT_PICKLES}" if unread else ""),
    )


def _is_part(name: str) -> bool:
    match = SHARD_COUNT.search(name)
    return match is not None and int(match[1]) > 1


def _check_repeats(path: Path, shards: Mapping[str, Mapping[str, TensorView]], index: ShardIndex) -> list[str]:
    """Refuse a tensor that two shards hold with different values, the only case in which data is read; note others."""
    repeats = [
        (name, planned, shard)
        for shard, views in shards.items()
        for name in views
        if (planned := index.weight_map.get(name, shard)) != shard and name in shards[planned]
    ]
    for name, planned, shard in repeats:
        if not same_values(shards[planned][name], shards[shard][name]):
            raise InconsistentCheckpoint(
                f"{path}: tensor {name!r} lies in {planned!r} and in {shard!r}, with other values",
                hint="the folder mixes files of different downloads; download it anew",
            )
    names = [repr(name) for name, _, _ in repeats]
    return [f"two shards hold {names[0]}{and_more(names)}, with the same values; read once"] if names else []


def _check_shard(
    path: Path,
    shard: str,
    views: Mapping[str, TensorView],
    shards: Mapping[str, Mapping[str, TensorView]],
    index: ShardIndex,
) -> None:
    """Every tensor of a shard is one that the index puts there, or a repetition."""
    for name in views:
        planned = index.weight_map.get(name)
        if planned is None or (planned != shard and name not in shards[planned]):
            says = f"puts it into {planned!r}" if planned else "does not list it"
            raise InconsistentCheckpoint(
                f"{path}: tensor {name!r} lies in {shard!r}, but the index {says}",
                hint="the folder mixes files of different downloads; download it anew",
            )
