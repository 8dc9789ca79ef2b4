"""A model planned as one GGUF file, or as several of limited size that llama.cpp loads as one.

    model-00001-of-00003.gguf    all keys of the model, and split.no 0, split.count 3, split.tensors.count
    model-00002-of-00003.gguf    these three keys alone; its own tensors

Tensors lie in the same order as in one file; `split.py` reads them. A part is as large as the limit allows, header and
all, where `llama-gguf-split --split-max-size` counts tensors alone. The first part may hold no tensor.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quantkit.errors import BadOption
from quantkit.exporters.gguf.blocks import BlockType
from quantkit.exporters.gguf.container.header import HEAD_BYTES, entry, header_bytes, info_bytes
from quantkit.exporters.gguf.container.split import COUNT, NUMBER, TENSORS, part_name
from quantkit.exporters.gguf.container.types import ValueType, padding
from quantkit.files.planned_files import PlannedFile, Unit

STEM = "model"
MOST_PARTS = 65_535
"""split.count is a uint16, and names have five digits."""

Info = tuple[str, BlockType, tuple[int, ...]]
"""Name, type and numpy shape of a tensor."""


def planned_files(
    entries: Sequence[bytes], infos: Sequence[Info], units: Sequence[Unit], limit: int | None
) -> tuple[PlannedFile, ...]:
    """The file or files of a model.

    Args:
        entries: key-values, see `header_bytes`.
        infos, units: the tensors in order, and the bytes of each with its padding.
        limit: the most bytes of a file; None = all in one.

    Raises:
        BadOption: a limit that the keys, or a tensor, exceed alone, or that makes more parts than can be named.
    """
    if limit is None:
        return (PlannedFile(f"{STEM}.gguf", (_header(entries, infos), *units)),)
    runs = _runs(sum(map(len, entries)), infos, units, limit)
    if len(runs) > MOST_PARTS:
        raise BadOption(
            f"--split-max-size makes {len(runs):,} files of the model; {MOST_PARTS:,} can be named",
            hint="choose a larger one",
        )
    return tuple(
        PlannedFile(
            part_name(STEM, number, len(runs)),
            (
                _header([*(entries if number == 0 else ()), *_keys(number, len(runs), len(infos))], infos[run]),
                *units[run],
            ),
        )
        for number, run in enumerate(runs)
    )


def _header(entries: Sequence[bytes], infos: Sequence[Info]) -> Unit:
    data = np.frombuffer(header_bytes(entries, infos), np.uint8)
    return Unit("header", data.nbytes, lambda: (data,))


def _keys(number: int, count: int, tensors: int) -> list[bytes]:
    return [
        entry(NUMBER, ValueType.UINT16, number),
        entry(COUNT, ValueType.UINT16, count),
        entry(TENSORS, ValueType.INT32, tensors),
    ]


def _runs(keys: int, infos: Sequence[Info], units: Sequence[Unit], limit: int) -> list[slice]:
    """Which tensors each part holds; `keys` are the bytes of the model's own."""
    empty = HEAD_BYTES + sum(map(len, _keys(0, 0, 0)))
    sizes = [len(info_bytes(*info, 0)) for info in infos]
    alone = {f"tensor {infos[i][0]!r}": _whole(empty + sizes[i]) + units[i].size for i in range(len(infos))}
    alone["the keys of the model, with its tokenizer,"] = _whole(empty + keys)
    worst = max(alone, key=alone.__getitem__)
    if alone[worst] > limit:
        raise BadOption(
            f"--split-max-size {limit:,} is too small: {worst} alone makes a file of {alone[worst]:,} bytes",
            hint=f"choose at least {alone[worst]}",
        )
    head, data, start = empty + keys, 0, 0
    runs = []
    for index, (size, unit) in enumerate(zip(sizes, units, strict=True)):
        if _whole(head + size) + data + unit.size > limit:
            runs.append(slice(start, index))
            head, data, start = empty, 0, index
        head, data = head + size, data + unit.size
    return [*runs, slice(start, len(infos))]


def _whole(size: int) -> int:
    return size + padding(size)
