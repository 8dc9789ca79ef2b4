"""A GGUF header that costs more than its bytes, and values of another type than their key has."""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from quantkit.errors import IncompleteFile, MalformedFile, QuantkitError
from quantkit.exporters.gguf.container import values
from quantkit.exporters.gguf.container.file import read_gguf
from quantkit.exporters.gguf.container.header import entry, number_array, string_array
from quantkit.exporters.gguf.container.split import read_model
from quantkit.exporters.gguf.container.types import NUMBERS, ValueType


def written(path: Path, entries: Sequence[bytes]) -> Path:
    head = struct.pack("<4sIQQ", b"GGUF", 3, 0, len(entries)) + b"".join(entries)
    path.write_bytes(head + bytes(-len(head) % 32))
    return path


def raw_strings(key: str, count: int, text: bytes = b"abcdefgh") -> bytes:
    name = key.encode()
    head = struct.pack("<Q", len(name)) + name + struct.pack("<IIQ", ValueType.ARRAY, ValueType.STRING, count)
    return head + (struct.pack("<Q", len(text)) + text) * count


def test_the_strings_of_a_large_vocabulary_are_read_in_a_second(tmp_path: Path) -> None:
    path = written(tmp_path / "x.gguf", [raw_strings("tokens", 262_144), raw_strings("merges", 520_000)])
    start = time.process_time()
    metadata = read_gguf(path).metadata
    assert time.process_time() - start < 2
    assert (len(metadata["tokens"]), metadata["merges"][-1]) == (262_144, "abcdefgh")


@pytest.mark.parametrize(
    "entries",
    [
        [raw_strings("a", 11)],
        [raw_strings("a", 10), raw_strings("b", 1)],
        [raw_strings("a", 5), raw_strings("b", 5), raw_strings("c", 5)],
        [raw_strings("a", 1 << 12, b"")],
        [raw_strings("a", 11)[:40] + bytes(500)],
    ],
)
def test_more_strings_than_a_file_may_hold_are_refused_unread(
    tmp_path: Path, entries: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(values, "MAX_STRINGS", 10)
    with pytest.raises(MalformedFile, match=r"array of [\d,]+ strings; the limit for a file is 10"):
        read_gguf(written(tmp_path / "x.gguf", entries))


def test_two_million_strings_are_the_limit(tmp_path: Path) -> None:
    path = written(tmp_path / "x.gguf", [raw_strings("a", values.MAX_STRINGS + 1, b"")])
    with pytest.raises(MalformedFile, match="array of 2,000,001 strings"):
        read_gguf(path)


def test_keys_together_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "MAX_METADATA_BYTES", 10_000)
    entries = [entry(f"k{i}", ValueType.STRING, "x" * 3000) for i in range(4)]
    read_gguf(written(tmp_path / "x.gguf", entries[:3]))
    with pytest.raises(MalformedFile, match=r"key 'k3' ends at byte [\d,]+; the limit for all keys is 10,000"):
        read_gguf(written(tmp_path / "x.gguf", entries))


@pytest.mark.parametrize("window", [1, 7, 8, 9, 64, 1 << 20])
def test_strings_that_cross_windows_are_whole(tmp_path: Path, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "_WINDOW_BYTES", window)
    texts = ["", "a", "\u65e5\u672c", "x" * 200, "", "\U0001f600" * 30, "end"]
    path = written(tmp_path / "x.gguf", [string_array("t", texts), entry("u", ValueType.UINT32, 7)])
    assert dict(read_gguf(path).metadata) == {"t": texts, "u": 7}


@pytest.mark.parametrize("cut", [1, 4, 8, 9, 40, 79])
def test_a_list_of_strings_that_ends_early_names_key_and_place(tmp_path: Path, cut: int) -> None:
    data = struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + raw_strings("some.key", 10)
    (tmp_path / "x.gguf").write_bytes(data[:-cut])
    with pytest.raises(IncompleteFile, match=r"key 'some\.key': string \d has 8 bytes; \d left"):
        read_gguf(tmp_path / "x.gguf")


@pytest.mark.parametrize("place", [0, 1, 5, 9])
def test_a_string_that_is_not_utf8_is_named(tmp_path: Path, place: int) -> None:
    data = bytearray(raw_strings("some.key", 10))
    data[-(10 - place) * 16 + 8] = 0xFF
    with pytest.raises(MalformedFile, match=rf"key 'some\.key': string {place} is not UTF-8"):
        read_gguf(written(tmp_path / "x.gguf", [bytes(data)]))


OTHER_NUMBERS = [kind for kind in NUMBERS if kind != ValueType.UINT32]


@pytest.mark.parametrize("kind", OTHER_NUMBERS, ids=lambda kind: ValueType(kind).name)
def test_an_alignment_of_another_type_is_refused(tmp_path: Path, kind: ValueType) -> None:
    key = b"general.alignment"
    value = NUMBERS[kind].type(1 if kind == ValueType.BOOL else 32).tobytes()
    data = struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value
    with pytest.raises(MalformedFile, match=r"general\.alignment must be UINT32"):
        read_gguf(written(tmp_path / "x.gguf", [data]))


@pytest.mark.parametrize("value", [0, 1, 4, 24, 48, 33, 1 << 17, (1 << 32) - 1])
def test_an_alignment_out_of_range_is_refused(tmp_path: Path, value: int) -> None:
    with pytest.raises(MalformedFile, match=r"general\.alignment"):
        read_gguf(written(tmp_path / "x.gguf", [entry("general.alignment", ValueType.UINT32, value)]))


@pytest.mark.parametrize(
    "value",
    [
        number_array("split.count", ValueType.UINT16, [1, 1]),
        number_array("split.count", ValueType.UINT16, []),
        string_array("split.count", ["1"]),
        entry("split.count", ValueType.STRING, "1"),
        entry("split.count", ValueType.FLOAT32, 1.0),
        entry("split.count", ValueType.BOOL, True),
        entry("split.count", ValueType.UINT16, 65_535),
    ],
)
def test_a_count_of_parts_that_is_no_count_is_refused(tmp_path: Path, value: bytes) -> None:
    with pytest.raises(QuantkitError, match=r"split\.(count|no)"):
        read_model(written(tmp_path / "x.gguf", [value]))
