"""The GGUF container: files of gguf-py are read, headers of ours are read by gguf-py, and broken ones are refused.

The broken files are built here from `struct` alone. Case numbers are those of the table that they come from.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest

from quantkit.errors import (
    IncompleteCheckpoint,
    IncompleteFile,
    MalformedFile,
    QuantkitError,
    SourceChanged,
    UnsupportedModel,
)
from quantkit.exporters.gguf import blocks
from quantkit.exporters.gguf.container.file import MAX_NAME_BYTES, read_gguf
from quantkit.exporters.gguf.container.header import entry, header_bytes, number_array, string_array
from quantkit.exporters.gguf.container.types import REMOVED_TYPES, TYPES, ValueType, padding, tensor_bytes
from quantkit.exporters.gguf.container.values import MAX_KEY_BYTES, MAX_STRING_BYTES

F32, Q4_0, UINT8, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 0, 2, 0, 4, 5, 6, 7, 8, 9
HUGE = 1 << 63


def string(text: str | bytes, size: int | None = None) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data) if size is None else size) + data


def value(key: str | bytes, kind: int, data: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + data


def info(
    name: str = "t", dims: tuple[int, ...] = (32,), kind: int = F32, offset: int = 0, count: int | None = None
) -> bytes:
    sizes = b"".join(struct.pack("<Q", size) for size in dims)
    return (
        string(name)
        + struct.pack("<I", len(dims) if count is None else count)
        + sizes
        + struct.pack("<IQ", kind, offset)
    )


def build(
    keys: list[bytes] | None = None,
    infos: list[bytes] | None = None,
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: bytes = b"\x03\0\0\0",
    key_count: int | None = None,
    tensor_count: int | None = None,
    alignment: int = 32,
) -> bytes:
    keys, infos = keys or [], infos or []
    counts = struct.pack(
        "<QQ", len(infos) if tensor_count is None else tensor_count, len(keys) if key_count is None else key_count
    )
    header = magic + version + counts + b"".join(keys) + b"".join(infos)
    return header + bytes(-len(header) % alignment) + data


def aligned(alignment: int, kind: int = UINT32) -> bytes:
    return value("general.alignment", kind, struct.pack("<I", alignment))


ARCH = value("general.architecture", STRING, string("llama"))
ROW = bytes(128)
CASES: dict[str, tuple[bytes, type[QuantkitError], str]] = {
    "GG01 no bytes": (b"", IncompleteFile, "0 bytes"),
    "GG02 magic only": (b"GGUF", IncompleteFile, "4 bytes; the header .* 24"),
    "GG03 wrong magic": (build(magic=b"GGML"), MalformedFile, "starts with b'GGML'"),
    "GG04 version 0": (build(version=bytes(4)), MalformedFile, "version 0; 2 and 3"),
    "GG05 future version": (build(version=b"\x63\0\0\0"), MalformedFile, "version 99"),
    "GG05 version 1": (build(version=b"\1\0\0\0"), MalformedFile, "version 1;"),
    "GG06 big-endian": (build(version=b"\0\0\0\3"), UnsupportedModel, "big-endian"),
    "GG07 2^63 tensors": (build(tensor_count=HUGE), MalformedFile, "9,223,372,036,854,775,808 tensors"),
    "GG07 more tensors than bytes": (build([ARCH], tensor_count=90_000), IncompleteFile, "90,000 tensors; .* left"),
    "GG08 2^63 keys": (build(key_count=HUGE), MalformedFile, "9,223,372,036,854,775,808 keys"),
    "GG09 more keys than bytes": (build([ARCH], key_count=90_000), IncompleteFile, "90,000 keys; .* left"),
    "GG09 one key too many": (build([ARCH], data=bytes(40), key_count=2), MalformedFile, "key 2 is empty"),
    "GG10 key of 2^63 bytes": (build([string("a", HUGE)], data=ROW), MalformedFile, "key 1 of 1 has 9,223,372"),
    "GG10 key past the end": (build([string("abc", 999) + bytes(8)]), IncompleteFile, "key 1 of 1 has 999 bytes"),
    "GG11 empty key": (build([value("", UINT32, bytes(4))]), MalformedFile, "key 1 is empty"),
    "GG12 key twice": (build([ARCH, ARCH]), MalformedFile, "'general.architecture' is listed twice"),
    "GG13 key that is not UTF-8": (build([value(b"\xff", UINT32, bytes(4))]), MalformedFile, "key 1 of 1 is not UTF-8"),
    "GG14 unknown value type": (build([value("a", 99, bytes(8))]), MalformedFile, "key 'a': unknown type 99"),
    "GG15 string of 2^63 bytes": (build([value("a", STRING, string("", HUGE))]), MalformedFile, "'a': the string has"),
    "GG16 string past the end": (build([value("a", STRING, string("", 1000))]), IncompleteFile, "1,000 bytes; .* left"),
    "GG16 string that is not UTF-8": (build([value("a", STRING, string(b"\xff"))]), MalformedFile, "'a': .* not UTF-8"),
    "GG17 array of 2^63 bytes": (
        build([value("a", ARRAY, struct.pack("<IQ", UINT8, HUGE))]), MalformedFile, "'a': array of 9,223,372"),
    "GG17 array past the end": (
        build([value("a", ARRAY, struct.pack("<IQ", FLOAT32, 1000))]), IncompleteFile, "'a': array of 1,000; .* left"),
    "GG18 array of 2^63 strings": (
        build([value("a", ARRAY, struct.pack("<IQ", STRING, HUGE))]), MalformedFile, "'a': array of 9,223,372"),
    "GG18 strings past the end": (
        build([value("a", ARRAY, struct.pack("<IQ", STRING, 1 << 20))]), IncompleteFile, "'a': array of 1,048,576"),
    "GG18 a string of an array is too long": (
        build([value("a", ARRAY, struct.pack("<IQ", STRING, 1) + string("", HUGE))]), MalformedFile, "'a': string 0"),
    "GG19 arrays in arrays": (
        build([value("a", ARRAY, struct.pack("<IQ", ARRAY, 1) * 10_000)]), MalformedFile, "'a': arrays inside arrays"),
    "GG19 array of an unknown type": (
        build([value("a", ARRAY, struct.pack("<IQ", 77, 1))]), MalformedFile, "'a': unknown type 77"),
    "GG20 boolean 2": (build([value("a", BOOL, b"\2")]), MalformedFile, "'a': boolean byte is 2"),
    "GG20 boolean 2 in an array": (
        build([value("a", ARRAY, struct.pack("<IQ", BOOL, 2) + b"\1\2")]), MalformedFile, "'a': boolean byte is 2"),
    "GG21 alignment 0": (build([aligned(0)]), MalformedFile, "alignment 0"),
    "GG22 alignment 13": (build([aligned(13)]), MalformedFile, "alignment 13 is not a power of two"),
    "GG23 alignment 2^31": (build([aligned(1 << 31)]), MalformedFile, "alignment 2147483648 is outside"),
    "GG24 alignment is a float": (build([aligned(32, FLOAT32)]), MalformedFile, "alignment must be UINT32"),
    "GG24 alignment is a string": (
        build([value("general.alignment", STRING, string("32"))]), MalformedFile, "alignment must be UINT32"),
    "GG24 alignment is a boolean": (build([value("general.alignment", BOOL, b"\1")]), MalformedFile, "must be UINT32"),
    "GG25 a million dimensions": (build([], [info(count=10**6)], ROW), MalformedFile, "'t': 1,000,000 dimensions"),
    "GG26 2^32-1 dimensions": (build([], [info(count=2**32 - 1)], ROW), MalformedFile, "'t': 4,294,967,295 dimens"),
    "GG27 five dimensions": (build([], [info(dims=(1,) * 5)], ROW), MalformedFile, "'t': 5 dimensions"),
    "GG27 no dimensions": (build([], [info(dims=())], ROW), MalformedFile, "'t': 0 dimensions"),
    "GG28 element count wraps": (build([], [info(dims=(1 << 32, 1 << 32, 4))], ROW), MalformedFile, "2.63 elements"),
    "GG29 dimension 2^63": (build([], [info(dims=(HUGE,))], ROW), MalformedFile, "'t': more than 2.63"),
    "GG30 dimension 0": (build([], [info(dims=(32, 0))], ROW), MalformedFile, "'t': a dimension is 0"),
    "GG31 unknown tensor type": (build([], [info(kind=99)], ROW), MalformedFile, "'t': unknown type 99"),
    "GG32 removed tensor type": (build([], [info(kind=4)], ROW), MalformedFile, "'t': type 4 .Q4_2. was removed"),
    "GG33 part of a block": (
        build([], [info(dims=(33,), kind=Q4_0)], ROW), MalformedFile, "'t': row of 33 is not a multiple of 32 .Q4_0."),
    "GG34 offset past the end": (build([], [info(offset=1024)], ROW), MalformedFile, "'t' starts at 1,024, past"),
    "GG35 offset wraps": (build([], [info(offset=2**64 - 32)], ROW), MalformedFile, "'t' starts at .* past the end"),
    "GG36 offset not aligned": (build([], [info(offset=3)], ROW), MalformedFile, "offset 3 is not a multiple of 32"),
    "GG36 hole between tensors": (
        build([], [info("a"), info("b", offset=256)], bytes(400)), MalformedFile, "'b' starts at 256; 'a' ends at 128"),
    "GG36 hole before the first": (build([], [info(offset=32)], bytes(160)), MalformedFile, "the header ends at 0"),
    "GG37 two tensors share an extent": (
        build([], [info("a"), info("b")], ROW), MalformedFile, "'b' starts at 0, inside 'a'"),
    "GG38 tensor name twice": (
        build([], [info("a"), info("a", offset=128)], ROW * 2), MalformedFile, "'a' is listed twice"),
    "GG39 tensor name of 2^63 bytes": (
        build([], [string("a", HUGE)], bytes(64)), MalformedFile, "tensor 1: the name has 9,223,372"),
    "GG40 tensor name of 64 bytes": (build([], [info("n" * 64)], ROW), MalformedFile, "64 bytes; the limit is 63"),
    "GG40 empty tensor name": (build([], [info("")], ROW), MalformedFile, "empty or not printable"),
    "GG40 control characters in a name": (build([], [info("a\x1b[2J")], ROW), MalformedFile, "not printable"),
    "GG41 data truncated": (build([], [info(dims=(1000,))], bytes(100)), IncompleteFile, "'t' needs 4,000 bytes, 100"),
    "GG41 no data at all": (build([], [info()])[:-5], IncompleteFile, "'t' needs 128 bytes, 0 left"),
    "GG42 trailing bytes": (build([], [info()], ROW + bytes(8)), MalformedFile, "8 bytes after the last tensor"),
    "GG42 trailing bytes without tensors": (build([ARCH], data=bytes(40)), MalformedFile, "40 bytes after"),
    "GG43 too little room before the next": (
        build([], [info("a", dims=(64,)), info("b", offset=128)], bytes(384)), MalformedFile, "inside 'a', .* to 256"),
}  # fmt: skip


def test_every_malformed_head_has_its_case() -> None:
    """The others: GG44 is blocks' (`test_layouts.py`), GG45 the chat template's, GG46 a split model's."""
    assert {f"GG{number:02}" for number in range(1, 44)} == {case[:4] for case in CASES}


@pytest.mark.parametrize("case", CASES)
def test_a_broken_file_is_refused_at_once(case: str, tmp_path: Path) -> None:
    data, cause, message = CASES[case]
    path = tmp_path / "broken.gguf"
    path.write_bytes(data)
    start = time.perf_counter()
    with pytest.raises(cause, match=message) as refusal:
        read_gguf(path)
    assert time.perf_counter() - start < 1
    assert re.search(r"broken\.gguf", str(refusal.value))
    assert "\n" not in str(refusal.value)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = build([ARCH, aligned(32)], [info("a"), info("b", offset=128)], ROW * 2)
    path = tmp_path / "short.gguf"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(MalformedFile):
            read_gguf(path)
    path.write_bytes(whole)
    assert list(read_gguf(path).tensors) == ["a", "b"]


def test_names_and_strings_at_the_limit_are_read(tmp_path: Path) -> None:
    path = tmp_path / "limits.gguf"
    key, text, name = "k" * MAX_KEY_BYTES, "x" * MAX_STRING_BYTES, "n" * MAX_NAME_BYTES
    path.write_bytes(build([value(key, STRING, string(text))], [info(name)], ROW))
    found = read_gguf(path)
    assert found.metadata == {key: text}
    assert list(found.tensors) == [name]
    path.write_bytes(build([value("a", STRING, string(text + "x"))]))
    with pytest.raises(MalformedFile, match="limit is 16,777,216"):
        read_gguf(path)
    path.write_bytes(build([value(key + "k", STRING, string(""))]))
    with pytest.raises(MalformedFile, match="limit is 4,096"):
        read_gguf(path)


@pytest.mark.parametrize("alignment", [8, 32, 4096, 65536])
def test_other_alignments_are_followed(alignment: int, tmp_path: Path) -> None:
    path = tmp_path / "aligned.gguf"
    row = np.arange(32, dtype=np.float32).tobytes()
    gap = bytes(-len(row) % alignment)
    infos = [info("a"), info("b", offset=len(row) + len(gap))]
    path.write_bytes(build([aligned(alignment)], infos, row + gap + row, alignment=alignment))
    assert read_gguf(path).rows("b", 0, 32).view("<f4")[:, 0].tolist() == list(range(32))


def test_version_2_and_a_missing_last_padding_are_read(tmp_path: Path) -> None:
    path = tmp_path / "v2.gguf"
    path.write_bytes(build([], [info(dims=(3,))], bytes(12), version=b"\2\0\0\0"))
    assert read_gguf(path).tensors["t"].shape == (3,)
    path.write_bytes(build([], [info(dims=(3,))], bytes(32)))
    assert read_gguf(path).tensors["t"].nbytes == 12


def test_files_of_gguf_py_are_read(tmp_path: Path) -> None:
    path = tmp_path / "theirs.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("u8", 255)
    writer.add_int8("i8", -128)
    writer.add_uint16("u16", 65535)
    writer.add_int16("i16", -32768)
    writer.add_uint32("u32", 2**32 - 1)
    writer.add_int32("i32", -(2**31))
    writer.add_uint64("u64", 2**64 - 1)
    writer.add_int64("i64", -(2**63))
    writer.add_float32("f32", 0.5)
    writer.add_float64("f64", 0.1)
    writer.add_bool("yes", True)
    writer.add_string("text", "zwölf 漢字")
    writer.add_array("strings", ["a", "", "漢"])
    writer.add_array("floats", [0.5, -2.0])
    writer.add_array("ints", [1, -2])
    writer.add_array("flags", [True, False])
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((6, 64)).astype(np.float32)
    quantized = gguf.quants.quantize(dense, gguf.GGMLQuantizationType.Q5_1)
    writer.add_tensor("dense", dense.astype(np.float16))
    writer.add_tensor("quantized", quantized, raw_dtype=gguf.GGMLQuantizationType.Q5_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_gguf(path)
    plain = {key: item for key, item in found.metadata.items() if not isinstance(item, np.ndarray)}
    assert plain == {
        "general.architecture": "llama", "u8": 255, "i8": -128, "u16": 65535, "i16": -32768, "u32": 2**32 - 1,
        "i32": -(2**31), "u64": 2**64 - 1, "i64": -(2**63), "f32": 0.5, "f64": 0.1, "yes": True,
        "text": "zwölf 漢字", "strings": ["a", "", "漢"],
    }  # fmt: skip
    assert found.metadata["floats"].tolist() == [0.5, -2.0]
    assert found.metadata["ints"].tolist() == [1, -2]
    assert found.metadata["flags"].tolist() == [True, False]
    assert found.tensors["quantized"].type is blocks.Q5_1
    assert found.tensors["quantized"].shape == (6, 64)
    assert np.array_equal(found.rows("dense", 2, 4).view(np.float16), dense[2:4].astype(np.float16))
    assert np.array_equal(found.rows("quantized", 5, 6), quantized[5:6])


def test_headers_of_ours_are_read_by_gguf_py(tmp_path: Path) -> None:
    path = tmp_path / "ours.gguf"
    values = {"a": np.arange(5, dtype="<f4"), "b": np.ones((3, 64), np.float16)}
    entries = [
        entry("general.architecture", ValueType.STRING, "llama"),
        entry("n", ValueType.UINT32, 7),
        entry("x", ValueType.FLOAT32, 1e-5),
        entry("on", ValueType.BOOL, False),
        string_array("words", ["é", "", "z"]),
        number_array("scores", ValueType.FLOAT32, [0.5, -1e4]),
    ]
    header = header_bytes(entries, [("a", blocks.F32, (5,)), ("b", blocks.F16, (3, 64))])
    assert len(header) % 32 == 0
    path.write_bytes(header + b"".join(v.tobytes() + bytes(padding(v.nbytes)) for v in values.values()))
    theirs = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert fields == {
        "general.architecture": "llama", "n": 7, "x": float(np.float32(1e-5)), "on": False,
        "words": ["é", "", "z"], "scores": [0.5, -1e4],
    }  # fmt: skip
    for tensor in theirs.tensors:
        assert np.array_equal(tensor.data, values[tensor.name])
    assert read_gguf(path).metadata["words"] == ["é", "", "z"]


def test_sizes_of_all_types_are_those_of_gguf_py() -> None:
    """All but Q8_1, which never lies in a file, and which gguf-py has with the two floats that it once had."""
    ours = {block.id: (block.name, block.elements, block.nbytes) for block in TYPES.values() if block.name != "Q8_1"}
    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    shared = ours.keys() & theirs.keys()
    assert {kind: ours[kind] for kind in shared} == {kind: theirs[kind] for kind in shared}
    assert len(shared) >= 30


@pytest.mark.engine("llama-cpp")
def test_sizes_of_all_types_are_those_of_ggml() -> None:
    spec = importlib.util.find_spec("xllamacpp")
    assert spec is not None
    assert spec.origin is not None
    ggml = ctypes.CDLL(str(next(Path(spec.origin).parent.glob("xllamacpp*.so"))))
    ggml.ggml_blck_size.restype, ggml.ggml_type_size.restype = ctypes.c_int64, ctypes.c_size_t
    for kind in range(max(TYPES) + 1):
        sizes = (ggml.ggml_blck_size(kind), ggml.ggml_type_size(kind))
        assert sizes == ((TYPES[kind].elements, TYPES[kind].nbytes) if kind in TYPES else (0, 0)), kind
        assert (kind in REMOVED_TYPES) == (sizes == (0, 0)), kind


def test_a_tensor_of_blocks_has_whole_blocks_per_row() -> None:
    assert tensor_bytes(blocks.Q4_0, (3, 64)) == 3 * 2 * 18
    assert [padding(size) for size in (0, 1, 31, 32, 33)] == [0, 31, 1, 0, 31]


def test_a_file_that_changes_after_opening_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "changing.gguf"
    path.write_bytes(build([], [info()], ROW))
    found = read_gguf(path)
    path.write_bytes(build([], [info()], ROW[:-4] + b"\1\1\1\1"))
    os.utime(path, ns=(1, 1))
    with pytest.raises(SourceChanged):
        found.rows("t", 0, 32)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IncompleteCheckpoint):
        read_gguf(tmp_path / "missing.gguf")
    with pytest.raises(MalformedFile, match="regular"):
        read_gguf(tmp_path)
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(MalformedFile, match="regular"):
        read_gguf(tmp_path / "pipe.gguf")
