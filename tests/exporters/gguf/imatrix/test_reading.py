"""Importance matrices in both formats, byte by byte, and what is wrong with broken ones."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from quantkit.errors import IncompleteFile, MalformedFile, NonFiniteValues, QuantkitError, UnsupportedModel
from quantkit.exporters.gguf.imatrix.reading import MAX_BYTES, read_importance
from quantkit.files import source_file
from tests.support.imatrix_files import (
    ARRAY,
    F32,
    STRING,
    UINT32,
    container,
    floats,
    gguf_matrix,
    key,
    keys,
    legacy_matrix,
    pair,
    string,
)

NAME = "blk.0.ffn_up.weight"
SMALLEST_GGUF = (
    b"GGUF\3\0\0\0" + b"\2\0\0\0\0\0\0\0" + b"\4\0\0\0\0\0\0\0"
    b"\x0c\0\0\0\0\0\0\0general.type" + b"\x08\0\0\0" + b"\7\0\0\0\0\0\0\0imatrix"
    b"\x10\0\0\0\0\0\0\0imatrix.datasets" + b"\x09\0\0\0" + b"\x08\0\0\0\1\0\0\0\0\0\0\0" + b"\1\0\0\0\0\0\0\0t"
    b"\x13\0\0\0\0\0\0\0imatrix.chunk_count" + b"\4\0\0\0" + b"\2\0\0\0"
    b"\x12\0\0\0\0\0\0\0imatrix.chunk_size" + b"\4\0\0\0" + b"\4\0\0\0"
    b"\x09\0\0\0\0\0\0\0w.in_sum2" + b"\1\0\0\0" + b"\2\0\0\0\0\0\0\0" + b"\0\0\0\0" + b"\0\0\0\0\0\0\0\0"
    b"\x08\0\0\0\0\0\0\0w.counts" + b"\1\0\0\0" + b"\1\0\0\0\0\0\0\0" + b"\0\0\0\0" + b"\x20\0\0\0\0\0\0\0"
    + bytes(26)
    + b"\0\0\x80\x40\0\0\0\x41" + bytes(24)  # 4, 8
    + b"\0\0\0\x41" + bytes(28)  # 8
)  # fmt: skip
SMALLEST_LEGACY = b"\1\0\0\0" + b"\1\0\0\0w" + b"\2\0\0\0" + b"\2\0\0\0" + b"\0\0\x80\x3f\0\0\0\x40"
"""One tensor w, two calls, values 1 and 2: means 0.5 and 1, as in the other."""


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that were written just now are looked at once: thousands are, and none changes while it is read."""
    monkeypatch.setattr(source_file, "CLOCK_TICK", 0.0)


def saved(data: bytes, folder: Path, name: str = "i.gguf") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("data", [SMALLEST_GGUF, SMALLEST_LEGACY], ids=["gguf", "dat"])
def test_the_smallest_file_of_each_format(data: bytes, tmp_path: Path) -> None:
    found = read_importance(saved(data, tmp_path))
    assert found.weights.keys() == {"w"}
    assert found.weights["w"].dtype == np.float32
    assert found.weights["w"].tolist() == [0.5, 1.0]
    assert (found.file, found.digest) == ("i.gguf", hashlib.sha256(data).hexdigest())
    assert (found.texts, found.chunks) == ((("t",), 2) if data is SMALLEST_GGUF else ((), 0))


def test_gguf_py_reads_the_smallest_file_alike(tmp_path: Path) -> None:
    reader = gguf.GGUFReader(saved(SMALLEST_GGUF, tmp_path))
    assert reader.fields[gguf.Keys.IMatrix.CHUNK_SIZE].contents() == 4
    assert {tensor.name: tensor.data.tolist() for tensor in reader.tensors} == {"w.in_sum2": [4, 8], "w.counts": [8]}


def test_sums_are_divided_once_in_float32_and_what_was_not_counted_is_one(tmp_path: Path) -> None:
    sums = np.array([[1, 2, 3], [5, 6, 7]], np.float32)
    tensors = {
        "e.in_sum2": (F32, (3, 2), sums.tobytes()),
        "e.counts": (F32, (1, 2), floats(7, 0)),
        **pair("w", [0.1, 1e30], 3),
    }
    weights = read_importance(saved(container(list(keys().values()), tensors), tmp_path)).weights
    assert weights["e"].tolist() == [*(np.float32(v) / np.float32(7) for v in (1, 2, 3)), 1, 1, 1]
    assert weights["w"].tolist() == [np.float32(0.1) / np.float32(3), np.float32(1e30) / np.float32(3)]


@pytest.mark.parametrize(
    "tail, texts, chunks",
    [
        (b"", (), 0),
        (struct.pack("<i", 5), (), 5),
        (struct.pack("<ii", 5, 0), (), 5),
        (struct.pack("<ii", 5, 3) + b"a.b", ("a.b",), 5),
    ],
)
def test_a_legacy_file_may_end_after_any_of_its_parts(
    tail: bytes, texts: tuple[str, ...], chunks: int, tmp_path: Path
) -> None:
    found = read_importance(saved(legacy_matrix({"w": [1, 2]}, tail=tail), tmp_path))
    assert (found.texts, found.chunks) == (texts, chunks)


def test_values_of_no_calls_are_taken_as_they_are(tmp_path: Path) -> None:
    assert read_importance(saved(legacy_matrix({"w": [3, 4]}, calls=0), tmp_path)).weights["w"].tolist() == [3, 4]


def test_other_tensors_and_experts_of_other_models_are_no_error(tmp_path: Path) -> None:
    tensors = {**pair("w", [1, 2]), "w.in_sum": (F32, (2,), floats(1, 1))}
    found = read_importance(saved(container(list(keys(texts=()).values()), tensors), tmp_path))
    assert found.weights.keys() == {"w"}
    assert found.texts == ()


def without(name: str) -> bytes:
    return container([data for each, data in keys().items() if each != name], pair("w", [1, 2]))


def instead(name: str, kind: int, data: bytes) -> bytes:
    return container(list({**keys(), name: key(name, kind, data)}.values()), pair("w", [1, 2]))


def of(tensors: dict[str, tuple[int, tuple[int, ...], bytes]]) -> bytes:
    return container(list(keys().values()), tensors)


SUMS = (F32, (2,), floats(1, 2))
COUNT = (F32, (1,), floats(8))
BROKEN: dict[str, tuple[bytes, type[QuantkitError], str]] = {
    "no texts": (without("imatrix.datasets"), MalformedFile, "imatrix.datasets"),
    "no chunk count": (without("imatrix.chunk_count"), MalformedFile, "imatrix.chunk_count"),
    "no chunk size": (without("imatrix.chunk_size"), MalformedFile, "imatrix.chunk_size"),
    "texts that are one": (instead("imatrix.datasets", STRING, string("t")), MalformedFile, "array of strings"),
    "texts that are numbers": (
        instead("imatrix.datasets", ARRAY, struct.pack("<IQI", UINT32, 1, 3)),
        MalformedFile,
        "array of strings",
    ),
    "a chunk count of 64 bits": (instead("imatrix.chunk_count", 10, bytes(8)), MalformedFile, "UINT32"),
    "a model": (instead("general.type", STRING, string("model")), UnsupportedModel, "'model'"),
    "a number for a type": (instead("general.type", UINT32, bytes(4)), MalformedFile, "general.type"),
    "no tensors": (of({}), MalformedFile, "no sums"),
    "sums without a count": (of({"w.in_sum2": SUMS}), MalformedFile, r"'w\.counts' is missing"),
    "a count without sums": (of({"w.counts": COUNT}), MalformedFile, r"'w\.in_sum2' is missing"),
    "sums in float16": (of({"w.in_sum2": (1, (2,), bytes(4)), "w.counts": COUNT}), MalformedFile, "must be F32"),
    "three dimensions": (of({"w.in_sum2": (F32, (2, 1, 1), bytes(8)), "w.counts": COUNT}), MalformedFile, "a matrix"),
    "two counts": (
        of({"w.in_sum2": SUMS, "w.counts": (F32, (2,), floats(8, 8))}),
        MalformedFile,
        "2 counts for 1 rows",
    ),
    "half a token": (of({"w.in_sum2": SUMS, "w.counts": (F32, (1,), floats(7.5))}), MalformedFile, "whole number"),
    "a count below zero": (of({"w.in_sum2": SUMS, "w.counts": (F32, (1,), floats(-1))}), MalformedFile, "below zero"),
    "a count of infinity": (
        of({"w.in_sum2": SUMS, "w.counts": (F32, (1,), floats(np.inf))}),
        NonFiniteValues,
        r"w\.counts",
    ),
    "a sum below zero": (of({"w.in_sum2": (F32, (2,), floats(1, -1)), "w.counts": COUNT}), MalformedFile, "below zero"),
    "NaN": (gguf_matrix({"w": [1, np.nan]}), NonFiniteValues, "'w'"),
    "infinity": (gguf_matrix({"w": [1, np.inf]}), NonFiniteValues, "'w'"),
    "a download that ended": (of({"w.in_sum2": SUMS, "w.counts": COUNT})[:-64], IncompleteFile, "needs 8 bytes"),
    "dat: nothing": (b"", IncompleteFile, "empty"),
    "dat: no entries": (struct.pack("<i", 0), MalformedFile, "number of entries is 0"),
    "dat: fewer than none": (struct.pack("<i", -1), MalformedFile, "number of entries is -1"),
    "dat: billions of entries": (struct.pack("<i", 2**31 - 1), MalformedFile, "must be from 1"),
    "dat: no name": (struct.pack("<ii", 1, 0), MalformedFile, "length of its name is 0"),
    "dat: an endless name": (struct.pack("<ii", 1, 2**31 - 1), MalformedFile, "length of its name"),
    "dat: a name of less than nothing": (struct.pack("<ii", 1, -5), MalformedFile, "length of its name is -5"),
    "dat: a name of no text": (struct.pack("<ii", 1, 1) + b"\xff" + bytes(12), MalformedFile, "not UTF-8"),
    "dat: a name with a bell": (struct.pack("<ii", 1, 1) + b"\7" + bytes(12), MalformedFile, "not printable"),
    "dat: calls below zero": (legacy_matrix({"w": [1]}, calls=-1), MalformedFile, "its calls is -1"),
    "dat: no values": (legacy_matrix({"w": []}), MalformedFile, "number of its values is 0"),
    "dat: values beyond the end": (legacy_matrix({"w": [1, 2]}, tail=b"")[:-4], IncompleteFile, "'w': its values"),
    "dat: an entry too few": (
        struct.pack("<i", 2) + legacy_matrix({"w": [1]}, tail=b"")[4:],
        IncompleteFile,
        "entry 2",
    ),
    "dat: a tensor twice": (
        struct.pack("<i", 2) + 2 * legacy_matrix({"w": [1]}, tail=b"")[4:],
        MalformedFile,
        "'w' is listed twice",
    ),
    "dat: chunks below zero": (legacy_matrix({"w": [1]}, tail=struct.pack("<i", -1)), MalformedFile, "chunks is -1"),
    "dat: half a number of chunks": (legacy_matrix({"w": [1]}, tail=b"\1\0"), IncompleteFile, "number of chunks"),
    "dat: half a name of a text": (
        legacy_matrix({"w": [1]}, tail=struct.pack("<ii", 1, 5) + b"ab"),
        IncompleteFile,
        "name of the text",
    ),
    "dat: more behind it": (legacy_matrix({"w": [1]}) + b"\0", MalformedFile, "1 bytes behind"),
    "dat: NaN": (legacy_matrix({"w": [np.nan]}), NonFiniteValues, "'w'"),
    "dat: a value below zero": (legacy_matrix({"w": [-1]}), MalformedFile, "below zero"),
    "a web page": (b"<!doctype html><title>404</title>" + bytes(300), IncompleteFile, "HTML page"),
    "a zip archive": (b"PK\3\4" + bytes(300), MalformedFile, "zip archive"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    data, cause, message = BROKEN[case]
    with pytest.raises(cause, match=message) as refusal:
        read_importance(saved(data, tmp_path))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "data", [gguf_matrix({NAME: [1, 2, 3]}), legacy_matrix({NAME: [1, 2, 3]})], ids=["gguf", "dat"]
)
def test_a_file_that_ends_early_is_refused_or_whole_as_far_as_it_goes(data: bytes, tmp_path: Path) -> None:
    """A GGUF file may lack its last padding; a legacy one may end behind its entries, or the number of chunks."""
    whole = []
    for size in range(len(data)):
        try:
            read_importance(saved(data[:size], tmp_path))
        except (IncompleteFile, MalformedFile):
            continue
        whole.append(size - len(data))
    assert whole == (list(range(-28, 0)) if data.startswith(b"GGUF") else [-16, -12])


@pytest.mark.parametrize(
    "data", [gguf_matrix({NAME: [1, 2, 3]}), legacy_matrix({NAME: [1, 2, 3]})], ids=["gguf", "dat"]
)
def test_changed_bytes_are_refused_or_give_numbers(data: bytes, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for _ in range(300):
        mutant = bytearray(data)
        for place in rng.integers(0, len(data), rng.integers(1, 4)):
            mutant[place] = rng.integers(0, 256)
        try:
            found = read_importance(saved(bytes(mutant), tmp_path))
        except QuantkitError:
            continue
        for values in found.weights.values():
            assert np.isfinite(values).all()
            assert (values >= 0).all()


def test_an_endless_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "i.dat"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(MalformedFile, match="limit"):
        read_importance(path)
