"""`model.safetensors.index.json`: which shard holds which tensor.

The index comes from a stranger and its file names are opened, so a name must be a bare one by the rules of POSIX
and of Windows alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import InconsistentCheckpoint, MalformedFile, UnsafePath
from quantkit.files.member import read_member_json

INDEX_NAME = "model.safetensors.index.json"
MAX_INDEX_BYTES = 100_000_000
MAX_TENSORS = 4_000_000
INDEX_DEPTH = 8

SHARD_COUNT = re.compile(r"-\d+-of-(\d+)\.safetensors$")


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """Tensor name to bare shard name, and the sum of tensor bytes that the index claims, if it does."""

    weight_map: Mapping[str, str]
    total_size: int | None

    @property
    def shards(self) -> tuple[str, ...]:
        """The shards' bare names, sorted."""
        return tuple(sorted(set(self.weight_map.values())))


def read_index(folder: Path) -> ShardIndex:
    """Read and check the index of a model's folder by itself, without looking at its shards.

    Raises:
        MalformedFile: not strict JSON, or not of the form {"metadata": {...}, "weight_map": {tensor: shard}}.
        UnsafePath: a shard name that is more than a bare file name.
        InconsistentCheckpoint: shards of different sets (`-00001-of-00003` and `-00002-of-00002`).
        Others: see `read_member`.
    """
    path = folder / INDEX_NAME
    index = read_member_json(folder, INDEX_NAME, limit=MAX_INDEX_BYTES, depth=INDEX_DEPTH)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise MalformedFile(f"{path}: weight_map must be an object with at least one tensor")
    if len(weight_map) > MAX_TENSORS:
        raise MalformedFile(f"{path} lists {len(weight_map):,} tensors; the limit is {MAX_TENSORS:,}")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str):
            raise MalformedFile(f"{path}: the shard of tensor {tensor[:80]!r} must be a name, is {str(shard)[:40]!r}")
    result = ShardIndex(weight_map, _total_size(index, path))
    for shard in result.shards:
        _check_name(shard, path)
    counts = {int(match[1]): shard for shard in result.shards if (match := SHARD_COUNT.search(shard))}
    if len(counts) > 1:
        first, second, *_ = counts.values()
        raise InconsistentCheckpoint(f"{path}: shards {first!r} and {second!r} are of different sets")
    return result


def _total_size(index: Mapping[str, Any], path: Path) -> int | None:
    metadata = index.get("metadata", {})
    if not isinstance(metadata, dict):
        raise MalformedFile(f"{path}: metadata must be an object")
    total = metadata.get("total_size")
    return int(total) if isinstance(total, (int, float)) and not isinstance(total, bool) else None


def _check_name(shard: str, path: Path) -> None:
    if "/" in shard or "\\" in shard or ":" in shard or shard in (".", "..", ""):
        raise UnsafePath(
            f"{path}: shard {shard[:80]!r} is not a bare file name",
            hint="shards lie beside their index; mend the index",
        )
    if not shard.isprintable() or shard != shard.strip() or len(shard.encode()) > 255:
        raise UnsafePath(f"{path}: shard {shard[:80]!r} is not a portable file name")
    if not shard.endswith(".safetensors"):
        raise MalformedFile(f"{path}: shard {shard[:80]!r} is not a .safetensors file; nothing else is read")
