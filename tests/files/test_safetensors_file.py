from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.numpy import save_file

from quantkit.errors import MalformedFile, QuantkitError, SourceChanged
from quantkit.files.planned_files import PlannedFile
from quantkit.files.safetensors_file import MAX_HEADER_BYTES, open_safetensors
from quantkit.files.safetensors_header import DTYPES, MAX_DIMENSION, MAX_NAME_BYTES, MAX_RANK, TensorEntry
from quantkit.files.safetensors_writer import TensorUnit, plan_safetensors
from quantkit.files.source_file import SourceFile
from tests.support.malformed import SAFETENSORS_CASES, Case, container, entry

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def written(file: PlannedFile) -> bytes:
    """The bytes of a planned file, every unit checked against its size."""
    parts = []
    for unit in file.units:
        data = b"".join(np.asarray(b).tobytes() if isinstance(b, np.ndarray) else bytes(b) for b in unit.produce())
        assert len(data) == unit.size, unit.name
        parts.append(data)
    assert sum(map(len, parts)) == file.size
    return b"".join(parts)


def unit_of(name: str, *arrays: np.ndarray) -> TensorUnit:
    names = [name] if len(arrays) == 1 else [f"{name}.{i}" for i in range(len(arrays))]
    entries = tuple(TensorEntry(n, a.dtype, a.shape) for n, a in zip(names, arrays, strict=True))
    return TensorUnit(name, entries, lambda: arrays)


def random_array(dtype: np.dtype, shape: Sequence[int], seed: int = 0) -> np.ndarray:
    count = int(np.prod(shape)) * dtype.itemsize
    raw = np.random.default_rng(seed).integers(0, 2 if dtype == np.bool_ else 256, count, np.uint8)
    return raw.view(dtype).reshape(shape)


def reference(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """What the `safetensors` package reads: dtype, shape and bytes of every tensor."""
    return {name: (t["dtype"], t["shape"], bytes(t["data"])) for name, t in deserialize(path.read_bytes())}


def ours(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    names = {dtype: name for name, dtype in DTYPES.items()}
    return {
        name: (names[view.dtype], list(view.shape), view.read().tobytes())
        for name, view in open_safetensors(SourceFile.open(path)).items()
    }


@pytest.mark.parametrize("case", SAFETENSORS_CASES, ids=lambda case: case.name)
def test_a_malformed_file_is_refused_in_one_line_that_names_it(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    case.build(path)
    with pytest.raises(QuantkitError) as caught:
        open_safetensors(SourceFile.open(path))
    message = str(caught.value)
    assert type(caught.value) is case.error, message
    for word in (str(path), *case.words):
        assert word in message
    assert message.isprintable()
    assert len(message) < len(str(path)) + 240


@pytest.mark.parametrize("case", SAFETENSORS_CASES, ids=lambda case: case.name)
def test_what_the_safetensors_package_rejects_is_rejected(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    case.build(path)
    try:
        reference(path)
    except SafetensorError:
        with pytest.raises(QuantkitError):
            open_safetensors(SourceFile.open(path))


def test_a_bool_byte_other_than_0_and_1_is_refused_when_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(container({"a": entry("BOOL", [3], 0, 3)}, b"\0\1\2"))
    with pytest.raises(MalformedFile, match=r"x\.safetensors: tensor 'a' is BOOL and holds byte 2"):
        open_safetensors(SourceFile.open(path))["a"].read()


@pytest.mark.parametrize("header", [b' \n{"t":%b}', b'{"t":%b}      ', b'{"__metadata__":{"k":"v"},"t":%b}\n'])
def test_white_space_and_metadata_around_a_header_are_accepted(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(container(header % json.dumps(entry("U8", [3], 0, 3)).encode(), b"abc"))
    assert ours(path) == reference(path) == {"t": ("U8", [3], b"abc")}


def test_empty_tensors_are_accepted_between_others(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    header = {"z": entry("F32", [0, 4], 2, 2), "b": entry("U8", [1], 2, 3), "a": entry("U8", [2], 0, 2)}
    path.write_bytes(container(header, b"abc"))
    assert ours(path) == reference(path)
    assert list(open_safetensors(SourceFile.open(path))) == ["a", "z", "b"]
    path.write_bytes(container(b"{}"))
    assert open_safetensors(SourceFile.open(path)) == {}


def test_limits_are_accepted_and_one_more_is_not(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    good = [
        {"a" * MAX_NAME_BYTES: entry("U8", [3], 0, 3)},
        {"a": entry("U8", [3] + [1] * (MAX_RANK - 1), 0, 3)},
        {"a": entry("U8", [MAX_DIMENSION, 0], 0, 0), "b": entry("U8", [3], 0, 3)},
    ]
    bad = [
        {"a" * (MAX_NAME_BYTES + 1): entry("U8", [3], 0, 3)},
        {"a": entry("U8", [3] + [1] * MAX_RANK, 0, 3)},
        {"a": entry("U8", [MAX_DIMENSION + 1, 0], 0, 0), "b": entry("U8", [3], 0, 3)},
    ]
    for header in good:
        path.write_bytes(container(header, b"abc"))
        assert open_safetensors(SourceFile.open(path))
    for header in bad:
        path.write_bytes(container(header, b"abc"))
        with pytest.raises(MalformedFile):
            open_safetensors(SourceFile.open(path))


def test_a_header_of_the_largest_length_is_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", MAX_HEADER_BYTES) + b"{nope")
        file.truncate(MAX_HEADER_BYTES + 8)  # sparse: costs no disk
    with pytest.raises(MalformedFile, match="not JSON"):
        open_safetensors(SourceFile.open(path))


def test_every_truncation_of_a_good_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": np.arange(4, dtype=np.float32), "b": np.zeros(3, np.int8)}, path)
    data = path.read_bytes()
    assert len(open_safetensors(SourceFile.open(path))) == 2
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(MalformedFile):
            open_safetensors(SourceFile.open(path))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_header_is_refused_or_reads_as_the_safetensors_package_reads_it(
    data: st.DataObject, tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    header = {"__metadata__": {"k": "v"}, "a": entry("F32", [2, 2], 0, 16), "b": entry("U8", [3], 16, 19)}
    good = bytearray(container(json.dumps(header, separators=(",", ":")).encode(), bytes(range(19))))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(good) - 1))
        good[place] = data.draw(st.sampled_from(b'0123456789"\\{}[],:.-+eEu \0\xff') | st.integers(0, 255))
    path.write_bytes(good)
    try:
        read = ours(path)
    except QuantkitError:
        return
    assert read == reference(path)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (5,), (3, 4), (2, 3, 5), (0, 7)], ids=str)
def test_every_dtype_and_shape_reads_as_the_safetensors_package_wrote_it(
    name: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    array = random_array(DTYPES[name], shape)
    path = tmp_path / "x.safetensors"
    save_file({"pad": np.zeros(3, np.int8), "t": array}, path)
    view = open_safetensors(SourceFile.open(path))["t"]
    assert (view.dtype, view.shape, view.name) == (array.dtype, shape, "t")
    read = view.read()
    assert read.shape == shape
    assert read.tobytes() == array.tobytes()
    assert b"".join(chunk.tobytes() for chunk in view.chunks(2)) == array.tobytes()
    assert read.flags.c_contiguous
    assert read.flags.writeable


def test_rows_are_read_where_they_lie(tmp_path: Path) -> None:
    array = random_array(BFLOAT16, (50, 7))
    path = tmp_path / "x.safetensors"
    save_file({"a": np.zeros(9, np.uint8), "t": array}, path)
    view = open_safetensors(SourceFile.open(path))["t"]
    for start, stop in ((0, 50), (0, 0), (50, 50), (13, 14), (20, 45)):
        assert view.fetch(start, stop).tobytes() == array[start:stop].tobytes()
    assert np.concatenate(list(view.chunks(20))).tobytes() == array.tobytes()
    for start, stop in ((-1, 1), (0, 51), (3, 2)):
        with pytest.raises(IndexError):
            view.fetch(start, stop)


def test_a_file_that_changes_after_its_header_was_read_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"t": np.zeros(1000, np.float32)}, path)
    view = open_safetensors(SourceFile.open(path))["t"]
    save_file({"t": np.ones(1000, np.float32)}, tmp_path / "y.safetensors")
    (tmp_path / "y.safetensors").replace(path)
    with pytest.raises(SourceChanged, match=r"x\.safetensors"):
        view.read()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts descriptors in /proc")
def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"t": np.zeros((100, 10), np.float32)}, path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    views = [open_safetensors(SourceFile.open(path)) for _ in range(20)]
    assert all(len(list(view["t"].chunks(10))) == 100 for view in views)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_offsets_beyond_4_gib_are_read(tmp_path: Path) -> None:
    path = tmp_path / "big.safetensors"
    size = 5 << 30
    header = container({"a": entry("U8", [size], 0, size), "b": entry("F32", [2], size, size + 8)})
    with path.open("wb") as file:
        file.write(header)
        file.seek(len(header) + size)
        file.write(np.array([1.5, -2.5], "<f4").tobytes())
    views = open_safetensors(SourceFile.open(path))
    assert views["b"].read().tolist() == [1.5, -2.5]
    assert views["a"].fetch(size - 2, size).tolist() == [0, 0]


def test_the_smallest_file_is_written_byte_for_byte() -> None:
    (file,) = plan_safetensors([unit_of("t", np.array([[1.0, -2.0]], np.float16))])
    header = b'{"__metadata__":{"format":"pt"},"t":{"dtype":"F16","shape":[1,2],"data_offsets":[0,4]}}'
    assert file.name == "model.safetensors"
    assert written(file) == b"\x58\0\0\0\0\0\0\0" + header + b" " + b"\x00\x3c\x00\xc0"


def test_the_safetensors_package_reads_what_is_written(tmp_path: Path) -> None:
    arrays = [random_array(dtype, (3, 5), seed) for seed, dtype in enumerate(DTYPES.values())]
    units = [unit_of(f"t{i}", array) for i, array in enumerate(arrays)] + [unit_of("group", *arrays[:3])]
    (file,) = plan_safetensors(units)
    path = tmp_path / file.name
    path.write_bytes(written(file))
    expected = {f"t{i}": array for i, array in enumerate(arrays)}
    expected |= {f"group.{i}": array for i, array in enumerate(arrays[:3])}
    read = reference(path)
    assert {name: data for name, (_, _, data) in read.items()} == {n: a.tobytes() for n, a in expected.items()}
    assert {tuple(shape) for _, shape, _ in read.values()} == {(3, 5)}
    assert ours(path) == read
    with safe_open(path, "numpy") as opened:
        assert opened.metadata() == {"format": "pt"}
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    assert length % 8 == 0


def test_shards_keep_units_whole_and_in_order_and_the_index_tells_where(tmp_path: Path) -> None:
    arrays = {f"u{i}": random_array(np.dtype(np.uint8), (size,), i) for i, size in enumerate((40, 50, 20, 120, 10, 90))}
    units = [unit_of(name, array[: len(array) // 2], array[len(array) // 2 :]) for name, array in arrays.items()]
    files = plan_safetensors(units, max_shard_bytes=100)
    *shards, index = files
    assert [file.name for file in files] == [
        *(f"model-0000{i}-of-00004.safetensors" for i in (1, 2, 3, 4)),
        "model.safetensors.index.json",
    ]
    assert [[unit.name for unit in file.units[1:]] for file in shards] == [["u0", "u1"], ["u2"], ["u3"], ["u4", "u5"]]
    parsed: dict[str, Any] = json.loads(written(index))
    assert parsed["metadata"] == {"total_size": 330}
    for file in shards:
        (tmp_path / file.name).write_bytes(written(file))
        assert reference(tmp_path / file.name).keys() == {t for t, f in parsed["weight_map"].items() if f == file.name}


def test_planning_twice_gives_the_same_bytes() -> None:
    units = [unit_of(f"t{i}", random_array(np.dtype("<f4"), (4, 4), i)) for i in range(20)]
    first, second = (plan_safetensors(units, max_shard_bytes=300) for _ in range(2))
    assert [written(file) for file in first] == [written(file) for file in second]


def test_a_name_planned_twice_is_a_bug_that_is_caught() -> None:
    with pytest.raises(ValueError, match="'t' is planned twice"):
        plan_safetensors([unit_of("t", np.zeros(1, np.int8)), unit_of("t", np.zeros(1, np.int8))])
