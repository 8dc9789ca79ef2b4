from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from quantkit.errors import IncompleteCheckpoint, MalformedFile, ReadFailed, SourceChanged, UnsafePath
from quantkit.files.json_file import MAX_DEPTH, MAX_DIGITS, parse_json
from quantkit.files.member import read_member_json
from quantkit.files.source_file import SourceFile
from tests.support.malformed import JSON_CASES


@pytest.mark.parametrize("name", JSON_CASES)
def test_doubtful_json_is_refused_in_one_line_that_names_the_file(name: str) -> None:
    data, words = JSON_CASES[name]
    with pytest.raises(MalformedFile) as caught:
        parse_json(data, "model/config.json")
    message = str(caught.value)
    assert message.startswith("model/config.json")
    assert words in message
    assert "\n" not in message
    assert len(message) < 180


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"a": [1, -2, 0, 0.5, 1e300, True, None, "text"], "b": {"a": {"a": 1}}},
        {"emoji": "\U0001f600", "letters": "é日本", "escaped": '\n\t"\\\x00'},
        {"big": 2**63 - 1, "bigger": 2**64},
    ],
)
def test_ordinary_json_reads_as_python_reads_it(value: dict[str, object]) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=2), f" \r\n{json.dumps(value)}\t"):
        assert parse_json(text.encode(), "x") == value
        assert parse_json(b"\xef\xbb\xbf" + text.encode(), "x") == value


def test_depth_and_digits_are_accepted_at_their_limits() -> None:
    nested = b'{"a":' * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH
    assert parse_json(nested, "x")
    assert parse_json(b'{"a": ' + b"9" * MAX_DIGITS + b"}", "x") == {"a": int("9" * MAX_DIGITS)}


def test_negative_zero_is_no_integer() -> None:
    assert isinstance(parse_json(b'{"a": -0}', "x")["a"], float)


def test_a_file_of_the_limit_is_read_and_one_byte_more_is_not(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b'{"a": 1}')
    assert read_member_json(path.parent, path.name, limit=8) == {"a": 1}
    with pytest.raises(MalformedFile, match=r"8 bytes; the limit for such a file is 7"):
        read_member_json(path.parent, path.name, limit=7)


def test_a_fifo_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MalformedFile, match="not a regular file"):
        read_member_json(tmp_path, "pipe", limit=100)


def test_a_missing_file_a_folder_and_a_link_loop_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(IncompleteCheckpoint, match=r"none\.json is missing"):
        read_member_json(tmp_path, "none.json", limit=100)
    with pytest.raises(MalformedFile, match="not a regular file"):
        read_member_json(tmp_path.parent, tmp_path.name, limit=100)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UnsafePath, match="leads to itself"):
        read_member_json(tmp_path, "loop", limit=100)
    (tmp_path / "file").write_text("{}")
    with pytest.raises(ReadFailed, match="cannot be read: Not a directory"):
        read_member_json(tmp_path / "file", "config.json", limit=100)


def test_a_file_that_grows_shrinks_or_is_replaced_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(100))
    file = SourceFile.open(path)
    assert file.read(10, 20).tobytes() == bytes(20)
    for change in (b"x" * 101, b"x" * 99):
        path.write_bytes(change)
        with pytest.raises(SourceChanged, match="changed while it was read"):
            file.read(0, 10)
    (tmp_path / "other").write_bytes(bytes(100))
    file = SourceFile.open(path)
    os.utime(tmp_path / "other", ns=(0, file.mtime_ns))
    (tmp_path / "other").replace(path)
    with pytest.raises(SourceChanged):
        file.read(0, 10)


def test_a_file_that_became_a_link_is_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"secret")
    file = SourceFile.open(path)
    path.rename(tmp_path / "moved")
    path.symlink_to("moved")
    with pytest.raises(SourceChanged):
        file.read(0, 6)
