"""Reading an importance matrix, ours or llama.cpp's: GGUF, or what was before it (`legacy.py`).

    general.type          "imatrix"
    imatrix.datasets      names of the texts
    imatrix.chunk_count   how many chunks of them, u32
    imatrix.chunk_size    tokens of a chunk, u32
    NAME.in_sum2          F32 [cols], of several experts [experts, cols]: sums of x² of the inputs x of tensor NAME
    NAME.counts           F32 [1], [experts, 1]: over how many tokens

Other tensors are left aside, as llama-quantize does. Sources: llama.cpp `tools/imatrix/imatrix.cpp`
(`save_imatrix`), `common/imatrix-loader.cpp`, `tools/quantize/quantize.cpp` (`load_imatrix`).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from quantkit.errors import MalformedFile, NonFiniteValues, UnsupportedModel
from quantkit.exporters.gguf.blocks import F32
from quantkit.exporters.gguf.container.file import MAGIC, GGUFFile, read_gguf
from quantkit.exporters.gguf.container.types import ValueType
from quantkit.exporters.gguf.imatrix.legacy import read_legacy
from quantkit.exporters.gguf.imatrix.matrix import ImportanceMatrix
from quantkit.exporters.gguf.keys import Keys
from quantkit.files.foreign_file import read_head, refuse_foreign
from quantkit.files.source_file import SourceFile

KIND = "imatrix"
"""`general.type`."""
DATASETS, CHUNK_COUNT, CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
SUMS, COUNTS = ".in_sum2", ".counts"
"""What the names of a tensor's two arrays end in."""
MAX_BYTES = 64 << 20
"""Of a file: the sums of an 8B model are 5 MB."""


def read_importance(path: Path) -> ImportanceMatrix:
    """Read a file, whole, and make of it what llama-quantize makes of it.

    Raises:
        IncompleteFile, MalformedFile: a rule of its format is broken; names the key, tensor or entry.
        NonFiniteValues: NaN or infinity among its numbers.
        UnsupportedModel: a GGUF file of another kind.
        What `SourceFile` raises.
    """
    file = SourceFile.open(path)
    data = file.read_all(MAX_BYTES)
    if data.startswith(MAGIC):
        gguf = read_gguf(path, file)
        weights = _weights(gguf)
        texts, chunks = tuple(gguf.metadata[DATASETS]), int(gguf.metadata[CHUNK_COUNT])
    else:
        try:
            weights, texts, chunks = read_legacy(data, str(path))
        except MalformedFile:
            refuse_foreign(file, read_head(file))  # says what else it is, where that is known
            raise
    for name, values in weights.items():
        _check_values(values, f"{path}: the weights of {name!r}")
    return ImportanceMatrix(path.name, hashlib.sha256(data).hexdigest(), weights, texts, chunks)


def _weights(gguf: GGUFFile) -> dict[str, np.ndarray]:
    """float32 [experts * cols] by the tensor's name: sums over counts, 1 where nothing was counted."""
    kind = Keys(gguf, "general.").text("type", KIND)
    if kind != KIND:
        raise UnsupportedModel(
            f"{gguf.path} is no importance matrix: its general.type is {kind[:40]!r}", hint="quantkit imatrix makes one"
        )
    for key, wanted in ((DATASETS, ValueType.ARRAY), (CHUNK_COUNT, ValueType.UINT32), (CHUNK_SIZE, ValueType.UINT32)):
        if gguf.kinds.get(key) != wanted or (key == DATASETS and not isinstance(gguf.metadata[key], list)):
            what = "an array of strings" if key == DATASETS else wanted.name
            raise MalformedFile(
                f"{gguf.path}: key {key!r} is missing, or not {what}", hint="quantkit imatrix makes one"
            )
    names = {name.removesuffix(suffix) for name in gguf.tensors for suffix in (SUMS, COUNTS) if name.endswith(suffix)}
    if not names:
        raise MalformedFile(f"{gguf.path} holds no sums of any tensor")
    return {name: _means(gguf, name) for name in sorted(names)}


def _means(gguf: GGUFFile, name: str) -> np.ndarray:
    sums, counts = _array(gguf, name + SUMS), _array(gguf, name + COUNTS).reshape(-1)
    where = f"{gguf.path}: tensor {name + COUNTS!r}"
    _check_values(counts, where)
    if (counts != np.rint(counts)).any():
        raise MalformedFile(f"{where}: a count of tokens is no whole number")
    if len(counts) != len(sums):
        raise MalformedFile(f"{where} has {len(counts):,} counts for {len(sums):,} rows of sums")
    counted = counts[:, None] > 0
    means: np.ndarray = np.divide(sums, counts[:, None], out=np.ones_like(sums), where=counted)
    return means.reshape(-1)


def _array(gguf: GGUFFile, name: str) -> np.ndarray:
    """float32 [experts, cols], one row where the tensor has one dimension."""
    info = gguf.tensors.get(name)
    if info is None:
        raise MalformedFile(f"{gguf.path}: tensor {name!r} is missing: sums and counts come in pairs")
    if info.type is not F32 or len(info.shape) > 2:
        raise MalformedFile(f"{gguf.path}: tensor {name!r} is {info.type.name} {info.shape}; it must be F32, a matrix")
    return gguf.rows(name, 0, info.shape[0]).view("<f4").reshape(-1, info.shape[-1])


def _check_values(values: np.ndarray, where: str) -> None:
    if not np.isfinite(values).all():
        raise NonFiniteValues(f"{where} hold NaN or infinity", hint="measure anew: quantkit imatrix")
    if (values < 0).any():
        raise MalformedFile(f"{where} hold a number below zero")
