"""Calibration files: the sequences that are made of them, and what is refused."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from quantkit.calibration.samples import CalibrationFile, Source
from quantkit.calibration.text_file import file_sequences
from quantkit.errors import MalformedFile, MissingDependency, QuantkitError
from quantkit.text.tokenizer import Tokenizer

CHAT = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(
    tokenizer: Tokenizer, file: Path, *, sequences: int = 32, length: int = 512
) -> tuple[Source, list[np.ndarray]]:
    return file_sequences(tokenizer, CalibrationFile(path=file), sequences=sequences, length=length)


def test_plain_text_becomes_whole_sequences_with_bos(tmp_path: Path, tokenizer: Tokenizer):
    text = "\n".join(f"line {i} of the text" for i in range(200))
    file = written(tmp_path / "a.txt", text)
    source, rows = read(tokenizer, file, sequences=4, length=32)
    ids = tokenizer.encode(text, add_bos=False)
    whole = [[1, *ids[i : i + 31]] for i in range(0, len(ids) - 30, 31)]
    assert [row.tolist() for row in rows] == [whole[i * len(whole) // 4] for i in range(4)]
    assert source == Source(name="a.txt", kind="text", digest=hashlib.sha256(text.encode()).hexdigest())


def test_a_long_text_is_cut_at_line_ends_and_sampled_evenly(tmp_path: Path, tokenizer: Tokenizer):
    lines = [f"number {i:07}" for i in range(20_000)]  # several portions
    file = written(tmp_path / "a.txt", "\n".join(lines))
    _, rows = read(tokenizer, file, sequences=4, length=64)
    starts = [tokenizer.decode(row[1:]).split("number ")[1][:7] for row in rows]
    assert np.abs(np.diff([int(start) for start in starts]) - 5000).max() < 600


def test_a_text_of_one_token_is_one_short_sequence(tmp_path: Path, tokenizer: Tokenizer):
    _, rows = read(tokenizer, written(tmp_path / "a.txt", "a"))
    assert [row.tolist() for row in rows] == [[1, *tokenizer.encode("a", add_bos=False)]]


def test_json_lines_hold_texts_and_conversations(tmp_path: Path, tokenizer: Tokenizer):
    records = [{"text": "one"}, {"messages": CHAT, "id": 7}, {"text": ""}, {"text": "two"}]
    file = written(tmp_path / "a.jsonl", "\n\n".join(json.dumps(record) for record in records) + "\n")
    source, rows = read(tokenizer, file)
    rendered = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nhi<|im_end|>\n"
    assert [row.tolist() for row in rows] == [tokenizer.encode(text) for text in ("one", rendered, "two")]
    assert source.kind == "jsonl"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "no text to calibrate on"),
        ("a.txt", " \n\t\n", "no text to calibrate on"),
        ("a.txt", b"ok\xff\xfe", "not UTF-8 at byte 2"),
        ("a.jsonl", "", "no text to calibrate on"),
        ("a.jsonl", '{"text": "a"}\n{"text": ', "line 2"),
        ("a.jsonl", '{"text": "a"}\n\n[1, 2]\n', "line 3"),
        ("a.jsonl", '{"text": 5}', "line 1: neither a string 'text'"),
        ("a.jsonl", '{"prompt": "a"}', "line 1: neither a string 'text'"),
        ("a.jsonl", '{"messages": [{"role": "user"}]}', "line 1: neither a string 'text'"),
        ("a.jsonl", b'{"text": "\xff"}', "line 1"),
        ("a.csv", "text", r"text files end in \.txt, \.jsonl, \.parquet"),
    ],
)
def test_a_bad_file_is_refused_with_its_name(
    tmp_path: Path, tokenizer: Tokenizer, name: str, content: str, message: str
):
    file = written(tmp_path / name, content)
    with pytest.raises(QuantkitError, match=message) as failure:
        read(tokenizer, file)
    assert str(file) in str(failure.value)
    assert "\n" not in str(failure.value)


def test_a_missing_file_is_refused_with_its_name(tmp_path: Path, tokenizer: Tokenizer):
    with pytest.raises(QuantkitError, match=r"absent\.txt"):
        read(tokenizer, tmp_path / "absent.txt")


def test_parquet_without_pyarrow_is_named(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependency, match="pyarrow"):
        read(tokenizer, written(tmp_path / "a.parquet", "PAR1"))


def test_parquet_holds_texts_and_conversations(tmp_path: Path, tokenizer: Tokenizer):
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    parquet.write_table(arrow.table({"text": ["one", None], "messages": [None, CHAT]}), tmp_path / "a.parquet")
    _, rows = read(tokenizer, tmp_path / "a.parquet")
    assert rows[0].tolist() == tokenizer.encode("one")
    assert len(rows) == 2
    with pytest.raises(MalformedFile, match="not a readable Parquet file"):
        read(tokenizer, written(tmp_path / "b.parquet", "PAR1 and no more"))
