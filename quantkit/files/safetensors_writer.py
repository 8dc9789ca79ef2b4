"""Safetensors files to be written: every byte is planned before the first tensor is computed."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from quantkit.files.planned_files import Buffer, PlannedFile, Unit, blob
from quantkit.files.safetensors_header import TensorEntry, header_bytes

DEFAULT_SHARD_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class TensorUnit:
    """Tensors that are computed and written together, and always land in one shard.

    produce() yields the bytes of `tensors`, in their order. Put wider dtypes first, and data stays aligned.
    """

    name: str
    tensors: tuple[TensorEntry, ...]
    produce: Callable[[], Iterable[Buffer]]

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)


def plan_safetensors(
    units: Sequence[TensorUnit],
    *,
    stem: str = "model",
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    made_for: str = "pt",
) -> tuple[PlannedFile, ...]:
    """Lay out `STEM.safetensors`, or shards `STEM-00001-of-0000N.safetensors` and their index.

    The data follows the order of `units`, so a file can be written front to back while units are computed; its
    header is its first unit. A unit larger than `max_shard_bytes` gets a shard of its own.

    made_for: see `header_bytes`.
    """
    shards = _shards(units, max_shard_bytes)
    if len(shards) == 1:
        return (_file(f"{stem}.safetensors", shards[0], made_for),)
    names = [f"{stem}-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    files = tuple(_file(name, shard, made_for) for name, shard in zip(names, shards, strict=True))
    return (*files, blob(f"{stem}.safetensors.index.json", _index(names, shards)))


def _shards(units: Sequence[TensorUnit], max_shard_bytes: int) -> list[list[TensorUnit]]:
    shards: list[list[TensorUnit]] = [[]]
    room = max_shard_bytes
    for unit in units:
        if shards[-1] and unit.nbytes > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(unit)
        room -= unit.nbytes
    return shards


def _file(name: str, units: Sequence[TensorUnit], made_for: str) -> PlannedFile:
    json_bytes = header_bytes([tensor for unit in units for tensor in unit.tensors], made_for)
    header = struct.pack("<Q", len(json_bytes)) + json_bytes
    tensors = tuple(Unit(unit.name, unit.nbytes, unit.produce) for unit in units)
    return PlannedFile(name, (Unit(f"{name} header", len(header), lambda: (header,)), *tensors))


def _index(names: Sequence[str], shards: Sequence[Sequence[TensorUnit]]) -> bytes:
    weight_map = {
        tensor.name: name
        for name, shard in zip(names, shards, strict=True)
        for unit in shard
        for tensor in unit.tensors
    }
    total = sum(unit.nbytes for shard in shards for unit in shard)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return (json.dumps(index, indent=2, ensure_ascii=False) + "\n").encode()
