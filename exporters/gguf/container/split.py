"""A model in several GGUF files, as `llama-gguf-split` writes it: all parts are opened as one file.

    NAME-00001-of-00003.gguf    all keys of the model, and split.no 0, split.count 3, split.tensors.count (of all parts)
    NAME-00002-of-00003.gguf    the same three keys with split.no 1; its own tensors

llama.cpp finds the parts by these names, from the first one. A file that was joined again says split.count 0, and one
that was never split may say 1. Source: llama.cpp `tools/gguf-split`, `src/llama-model-loader.cpp`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.errors import IncompleteCheckpoint, InconsistentCheckpoint, MalformedFile, QuantkitError, UnsafePath
from quantkit.exporters.gguf.container.file import GGUFFile, TensorInfo, read_gguf
from quantkit.exporters.gguf.container.types import ValueType
from quantkit.files.member import open_member, refuse_unfinished
from quantkit.files.source_file import SourceFile, resolved
from quantkit.models.layouts.small_files import CONFIG_NAME, file_names

NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"
_KINDS = {NUMBER: ValueType.UINT16, COUNT: ValueType.UINT16, TENSORS: ValueType.INT32}
"""Types that llama.cpp takes; it dies of others."""
_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)
_REPAIR = "download all parts of one model into one folder"


@dataclass(frozen=True, slots=True)
class _Split:
    """number: which part a file is, from 0. count: of the parts. tensors: of all parts together."""

    number: int
    count: int
    tensors: int


def part_name(stem: str, number: int, count: int) -> str:
    """The file name of part `number`, counted from 0, of `count`."""
    return f"{stem}-{number + 1:05}-of-{count:05}.gguf"


def first_part(folder: Path) -> Path | None:
    """The first part of the one split model in a folder; None where there are several, or a model of another kind."""
    try:
        names = file_names(folder)
    except QuantkitError:
        return None
    found = {(match[1], match[3]) for name in names if (match := _NAME.fullmatch(name))}
    if len(found) != 1 or any(name == CONFIG_NAME or name.endswith(".safetensors") for name in names):
        return None
    ((stem, count),) = found
    return folder / part_name(stem, 0, int(count))


def read_model(path: Path) -> GGUFFile:
    """Read the header of the file `path`, and of all other parts where it is one of several.

    path: a file, or a folder with the parts of one model.

    Returns:
        The model as if it were one file; the first part comes first, whichever was given.

    Raises:
        IncompleteCheckpoint: a part is missing; names it.
        InconsistentCheckpoint: parts of different models, a tensor twice, or another number of tensors than is said.
        MalformedFile: keys of the split that are missing or wrong, or a name that does not say which part it is.
        Others: see `read_gguf` and `open_member`.
    """
    if path.is_dir():
        path = first_part(path) or path
    refuse_unfinished(path)
    given = read_gguf(path)
    split = _split_of(given)
    if split is None:
        return given
    names = _part_names(path, split)
    parts = [given if number == split.number else _other_part(given, name) for number, name in enumerate(names)]
    for number, part in enumerate(parts):
        _check_part(part, number, split, parts[0])
    return GGUFFile(
        files=tuple(part.files[0] for part in parts),
        metadata=parts[0].metadata,
        kinds=parts[0].kinds,
        tensors=_joined(parts, split),
    )


def _split_of(gguf: GGUFFile) -> _Split | None:
    """What the keys of a file say about it; None for a whole model."""
    for key, kind in _KINDS.items():
        if key in gguf.metadata and gguf.kinds[key] != kind:
            raise MalformedFile(f"{gguf.path}: {key} must be of type {kind.name}")
    number, count, tensors = (gguf.metadata.get(key) for key in (NUMBER, COUNT, TENSORS))
    if count is None and number is None:
        return None
    if count in (0, 1) and number in (0, None):
        return None
    if count is None or number is None or tensors is None:
        lacking = next(key for key in _KINDS if key not in gguf.metadata)
        raise MalformedFile(f"{gguf.path}: part of a split model, but key {lacking!r} is missing")
    if number >= count:
        raise MalformedFile(f"{gguf.path}: {NUMBER} {number} is not below {COUNT} {count}")
    if tensors < 0:
        raise MalformedFile(f"{gguf.path}: {TENSORS} is {tensors}")
    return _Split(number, count, tensors)


def _part_names(path: Path, split: _Split) -> list[str]:
    """Names of all parts, of which `path` is one."""
    found = _NAME.fullmatch(path.name)
    stem = found[1] if found else path.name.removesuffix(".gguf")
    names = [part_name(stem, number, split.count) for number in range(split.count)]
    if path.name != names[split.number]:
        raise MalformedFile(
            f"{path}: part {split.number + 1} of {split.count} by its keys, which its name does not say",
            hint=f"call it {names[split.number]}, as llama.cpp asks, with the other parts beside it",
        )
    return names


def _other_part(given: GGUFFile, name: str) -> GGUFFile:
    folder = given.path.parent
    try:
        file = open_member(folder, name)
    except IncompleteCheckpoint as error:
        raise IncompleteCheckpoint(f"{given.path} is a part of a split model; {error}", hint=_REPAIR) from None
    except UnsafePath:
        location = resolved(folder / name)
        if location.parent != given.files[0].location.parent:  # links of the user's own lead to one folder
            raise
        file = SourceFile.open(folder / name, location)
    return read_gguf(file.path, file)


def _check_part(part: GGUFFile, number: int, split: _Split, first: GGUFFile) -> None:
    own = _split_of(part)
    if own is None or (own.count, own.number) != (split.count, number):
        says = f"part {own.number + 1} of {own.count}" if own else "a whole model"
        raise InconsistentCheckpoint(
            f"{part.path}: {says} by its keys, part {number + 1} of {split.count} by its name", hint=_REPAIR
        )
    if own.tensors != split.tensors:
        raise InconsistentCheckpoint(
            f"{part.path}: {TENSORS} is {own.tensors:,}, in another part {split.tensors:,}; they are of two models",
            hint=_REPAIR,
        )
    for key, value in part.metadata.items():
        if key not in _KINDS and key != "general.alignment" and not _same(value, first.metadata.get(key)):
            raise InconsistentCheckpoint(
                f"{part.path}: key {key[:80]!r} is not what it is in the first part", hint=_REPAIR
            )


def _same(one: Any, other: Any) -> bool:  # noqa: ANN401 - whatever a file declares
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return type(one) is type(other) and np.array_equal(one, other)
    return type(one) is type(other) and bool(one == other)


def _joined(parts: Sequence[GGUFFile], split: _Split) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for part in parts:
        for name, info in part.tensors.items():
            if name in tensors:
                raise InconsistentCheckpoint(
                    f"{part.path}: tensor {name!r} lies in {tensors[name].file.path.name} as well", hint=_REPAIR
                )
            tensors[name] = info
    if len(tensors) != split.tensors:
        raise InconsistentCheckpoint(
            f"{parts[0].path}: the {split.count} parts hold {len(tensors):,} tensors, {TENSORS} says {split.tensors:,}",
            hint=_REPAIR,
        )
    return tensors
