"""Named bad files: a builder for each, the error that it must raise, and words that its message must contain.

ST.. are safetensors files (IX21 to IX23: other files under that name); `JSON_CASES` are JSON files. Folders are in
`malformed_folders.py`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantkit.errors import IncompleteFile, MalformedFile, QuantkitError, UnsupportedModel


@dataclass(frozen=True)
class Case:
    """build(path) makes the bad file, or spoils the good folder, at `path`."""

    name: str
    build: Callable[[Path], object]
    error: type[QuantkitError]
    words: tuple[str, ...]


def container(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file around `header`: bytes, text, or anything that JSON can hold."""
    text = header if isinstance(header, (bytes, str)) else json.dumps(header)
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(dtype: str, shape: Sequence[object], begin: object, end: object, **more: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end], **more}


def _file(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def _st(name: str, data: bytes, error: type[QuantkitError], *words: str) -> Case:
    return Case(name, _file(data), error, words)


GOOD = {"t": entry("F32", [4], 0, 16)}
BYTES = bytes(16)


def _wide_bomb() -> bytes:
    info = json.dumps(entry("U8", [16384], 0, 16384))
    return container("{" + ",".join(f'"w{i}":{info}' for i in range(100_000)) + "}", bytes(16384))


SAFETENSORS_CASES: tuple[Case, ...] = (
    _st("ST01 no bytes", b"", IncompleteFile, "0 bytes"),
    _st("ST02 shorter than the length field", bytes(7), IncompleteFile, "7 bytes"),
    _st("ST03 a length without a header", struct.pack("<Q", 65) + b"{}", IncompleteFile, "65 bytes"),
    _st("ST04 length 2^64-1", container(b"{}", length=2**64 - 1), MalformedFile, "18,446,744,073,709,551,615"),
    _st("ST05 length over the cap", container(b"{}", length=100_000_001), MalformedFile, "100,000,001", "100,000,000"),
    _st("ST06 header beyond the end", container(b"{}", bytes(79), length=1000), IncompleteFile, "1,000", "81"),
    _st("ST07 empty header", container(b"", b"{}"), MalformedFile, "empty"),
    _st("ST08 header is not UTF-8", container(b'{"\xff":1}'), MalformedFile, "not UTF-8", "byte 2"),
    _st("ST08 header begins with garbage", container(b"\xfe\xfd{}"), MalformedFile, "0xfe"),
    _st("ST09 header is not JSON", container(b"{nope}"), MalformedFile, "not JSON", "column 2"),
    _st("ST10 header is a list", container([1, 2]), MalformedFile, "0x5b"),
    _st("ST11 header after a byte order mark", container(b"\xef\xbb\xbf{}"), MalformedFile, "0xef"),
    _st("ST12 padding of NUL", container(json.dumps(GOOD) + "\0\0", BYTES), MalformedFile, "not JSON"),
    _st(
        "ST13 a tensor twice",
        container(
            '{"a":{"dtype":"U8","shape":[16],"data_offsets":[0,16]},'
            '"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
            BYTES,
        ),
        MalformedFile,
        "'a'",
        "twice",
    ),
    _st("ST14 metadata twice", container('{"__metadata__":{},"__metadata__":{}}'), MalformedFile, "__metadata__"),
    _st("ST15 metadata that is a number", container({"__metadata__": {"a": 1}}), MalformedFile, "'a'", "string"),
    _st("ST15 metadata that is a list", container({"__metadata__": []}), MalformedFile, "__metadata__"),
    _st(
        "ST16 a field twice",
        container('{"t":{"dtype":"U8","dtype":"F32","shape":[4],"data_offsets":[0,16]}}', BYTES),
        MalformedFile,
        "'t'",
        "'dtype'",
        "twice",
    ),
    _st("ST17 unknown dtype", container({"t": entry("F7", [4], 0, 16)}, BYTES), MalformedFile, "'t'", "'F7'"),
    _st(
        "ST17 dtype that is a list", container({"t": {**GOOD["t"], "dtype": []}}, BYTES), MalformedFile, "'t'", "dtype"
    ),
    _st(
        "ST18 no dtype", container({"t": {"shape": [4], "data_offsets": [0, 16]}}, BYTES), MalformedFile, "'t'", "dtype"
    ),
    _st(
        "ST18 no shape",
        container({"t": {"dtype": "F32", "data_offsets": [0, 16]}}, BYTES),
        MalformedFile,
        "'t'",
        "shape",
    ),
    _st(
        "ST18 no offsets", container({"t": {"dtype": "F32", "shape": [4]}}, BYTES), MalformedFile, "'t'", "data_offsets"
    ),
    _st("ST18 a tensor that is a number", container({"t": 3}), MalformedFile, "'t'", "object"),
    _st(
        "ST19 unknown field", container({"t": entry("F32", [4], 0, 16, evil=1)}, BYTES), MalformedFile, "'t'", "'evil'"
    ),
    _st("ST20 negative offset", container({"t": entry("F32", [4], -4, 12)}, BYTES), MalformedFile, "'t'", "-4"),
    _st("ST21 fractional offset", container({"t": entry("F32", [4], 0.0, 16)}, BYTES), MalformedFile, "'t'", "0.0"),
    _st(
        "ST21 negative zero", container('{"t":{"dtype":"U8","shape":[0],"data_offsets":[-0,0]}}'), MalformedFile, "'t'"
    ),
    _st("ST21 boolean dimension", container({"t": entry("F32", [True], 0, 4)}, bytes(4)), MalformedFile, "'t'", "True"),
    _st("ST22 end before begin", container({"t": entry("F32", [4], 16, 0)}, BYTES), MalformedFile, "'t'", "16", "0"),
    _st(
        "ST22 three offsets",
        container({"t": {**GOOD["t"], "data_offsets": [0, 8, 16]}}, BYTES),
        MalformedFile,
        "'t'",
        "3",
    ),
    _st(
        "ST23 overlap",
        container({"a": entry("U8", [16], 0, 16), "b": entry("U8", [16], 8, 24)}, bytes(24)),
        MalformedFile,
        "'b' overlaps 'a' by 8",
    ),
    Case("ST24 100,000 tensors in one place", lambda p: p.write_bytes(_wide_bomb()), MalformedFile, ("'w1'", "16,384")),
    _st(
        "ST25 hole",
        container({"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 12, 16)}, BYTES),
        MalformedFile,
        "8 unused bytes",
        "'b'",
    ),
    _st(
        "ST26 hole at the start",
        container({"a": entry("U8", [8], 8, 16)}, BYTES),
        MalformedFile,
        "8 unused bytes",
        "'a'",
    ),
    _st("ST27 bytes behind the data", container(GOOD, BYTES + b"<script>...."), MalformedFile, "12 bytes behind"),
    _st("ST28 one byte short", container(GOOD, bytes(15)), IncompleteFile, "1 bytes are missing", "'t'"),
    _st(
        "ST29 size against shape",
        container({"a": entry("F32", [2, 3], 0, 16)}, BYTES),
        MalformedFile,
        "'a'",
        "24",
        "16",
    ),
    _st(
        "ST30 shape product wraps to 0",
        container({"a": entry("U8", [2**32, 2**32], 0, 0)}),
        MalformedFile,
        "'a'",
        "2^63",
    ),
    _st("ST31 bits wrap to 0", container({"a": entry("F64", [2**40, 2**21], 0, 0)}), MalformedFile, "'a'", "2^63"),
    _st("ST32 negative dimensions", container({"a": entry("F32", [-2, -2], 0, 16)}, BYTES), MalformedFile, "'a'", "-2"),
    _st("ST33 dimension 2^64", container({"t": entry("U8", [2**64], 0, 0)}), MalformedFile, "'t'", str(2**64)),
    _st("ST34 rank 10000", container({"a": entry("U8", [1] * 10_000, 0, 1)}, b"\0"), MalformedFile, "'a'", "10,000"),
    _st("ST34 rank 9", container({"a": entry("U8", [1] * 9, 0, 1)}, b"\0"), MalformedFile, "'a'", "9 dimensions"),
    _st(
        "ST35 huge dimension times 0", container({"a": entry("U8", [2**62, 0], 0, 0)}), MalformedFile, "'a'", str(2**62)
    ),
    _st(
        "ST36 sizes that add up to 2^63",
        container({f"a{i}": entry("U8", [2**46], i << 46, (i + 1) << 46) for i in range(8)}),
        IncompleteFile,
        "missing",
        "'a7'",
    ),
    _st("ST37 JSON 100,000 deep", container('{"a":' * 100_000 + "1" + "}" * 100_000), MalformedFile, "deeper than 8"),
    _st("ST37 JSON 9 deep", container('{"a":' * 9 + "1" + "}" * 9), MalformedFile, "deeper than 8"),
    _st("ST38 sub-byte dtype", container({"a": entry("F4", [3], 0, 2)}, bytes(2)), UnsupportedModel, "'a'", "F4"),
    _st("ST38 complex dtype", container({"a": entry("C64", [2], 0, 16)}, BYTES), UnsupportedModel, "'a'", "C64"),
    _st("ST39 name that is a path", container({"../../x": GOOD["t"]}, BYTES), MalformedFile, "../../x", "separator"),
    _st("ST39 name that is a Windows path", container({"..\\x": GOOD["t"]}, BYTES), MalformedFile, "separator"),
    _st(
        "ST40 name with an escape sequence",
        container({"a\0\x1b[2J": GOOD["t"]}, BYTES),
        MalformedFile,
        "control",
        "x1b",
    ),
    _st("ST41 empty name", container({"": GOOD["t"]}, BYTES), MalformedFile, "empty name"),
    _st("ST42 name of 1 MB", container({"a" * 1_000_000: GOOD["t"]}, BYTES), MalformedFile, "1,000,000 bytes"),
    _st("ST42 name of 513 bytes", container({"a" * 513: GOOD["t"]}, BYTES), MalformedFile, "513 bytes"),
    _st(
        "ST43 half a surrogate pair",
        container('{"\\ud800":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', BYTES),
        MalformedFile,
        "surrogate",
    ),
    _st(
        "ST44 NaN", container('{"t":{"dtype":"F32","shape":[NaN],"data_offsets":[0,16]}}', BYTES), MalformedFile, "NaN"
    ),
    _st(
        "ST44 infinity",
        container('{"t":{"dtype":"F32","shape":[1e999],"data_offsets":[0,16]}}'),
        MalformedFile,
        "1e999",
    ),
    _st(
        "ST46 integer of 5000 digits",
        container('{"t":{"dtype":"F32","shape":[%s],"data_offsets":[0,16]}}' % ("9" * 5000), BYTES),
        MalformedFile,
        "5,000 digits",
    ),
    _st(
        "ST47 empty tensor inside another",
        container({"a": entry("U8", [16], 0, 16), "z": entry("U8", [0], 8, 8)}, BYTES),
        MalformedFile,
        "'z'",
        "'a'",
    ),
    _st(
        "IX21 Git LFS pointer",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 867747840\n",
        IncompleteFile,
        "Git LFS pointer",
    ),
    _st("IX22 HTML page", b"\n<!DOCTYPE html><html><body>404</body></html>", IncompleteFile, "HTML page"),
    _st("IX23 zip archive", b"PK\x03\x04" + bytes(40), MalformedFile, "zip archive"),
    _st("IX23 pickle", b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01K\x01s.", MalformedFile, "pickle"),
    _st("IX23 GGUF file", b"GGUF\x03\0\0\0" + bytes(16), MalformedFile, "GGUF"),
)


JSON_CASES: Mapping[str, tuple[bytes, str]] = {
    "nothing": (b"", "is empty"),
    "only spaces": (b" \n", "is empty"),
    "a byte order mark and nothing": (b"\xef\xbb\xbf", "is empty"),
    "UTF-16, little-endian": ("{}".encode("utf-16-le").join((b"\xff\xfe", b"")), "UTF-16"),
    "UTF-16, big-endian": (b"\xfe\xff\0{\0}", "UTF-16"),
    "Latin-1": (b'{"a": "\xe9"}', "not UTF-8 at byte 7"),
    "a list": (b"[]", "an array instead of an object"),
    "a string": (b'"a"', "a string instead of an object"),
    "a number": (b"1", "a number instead of an object"),
    "true": (b"true", "true or false instead of an object"),
    "null": (b"null", "null instead of an object"),
    "two objects": (b"{}{}", "not JSON at line 1 column 3"),
    "a comma too many": (b'{"a": 1,\n}', "not JSON at line"),
    "a comment": (b"{} // a", "not JSON"),
    "single quotes": (b"{'a': 1}", "not JSON"),
    "a newline in a string": (b'{"a": "\n"}', "not JSON"),
    "NUL behind the object": (b"{}\0", "not JSON"),
    "a key twice": (b'{"a": 1, "b": 2, "a": 3}', "'a' stands twice"),
    "a key twice inside": (b'{"outer": {"a": 1, "a": 1}}', "'a' stands twice in 'outer'"),
    "a key twice inside a list": (b'{"outer": [{"a": 1, "a": 1}]}', "'a' stands twice in 'outer'"),
    "NaN": (b'{"a": NaN}', "NaN is not JSON"),
    "infinity": (b'{"a": [-Infinity]}', "-Infinity is not JSON"),
    "a number beyond doubles": (b'{"a": 1e400}', "1e400 is out of range"),
    "41 digits": (b'{"a": ' + b"1" * 41 + b"}", "41 digits"),
    "a million digits": (b'{"a": ' + b"1" * 1_000_000 + b"}", "1,000,000 digits"),
    "half a surrogate pair": (b'{"a": "\\ud83d"}', "surrogate"),
    "half a surrogate pair in a key": (b'{"\\uDE00": 1}', "surrogate"),
    "17 levels": (b'{"a":' * 17 + b"1" + b"}" * 17, "deeper than 16"),
    "lists 100,000 deep": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "deeper than 16"),
}
