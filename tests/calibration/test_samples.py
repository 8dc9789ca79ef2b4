"""Calibration files: the sequences that are made of them, and what is refused."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from quantkit.calibration.samples import CalibrationOptions, file_samples
from quantkit.calibration.sources import calibration_samples
from quantkit.errors import BadOption, MalformedFile, MissingDependency, QuantkitError
from quantkit.models.checkpoint import Checkpoint
from quantkit.text.tokenizer import Tokenizer

CHAT = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_plain_text_becomes_whole_sequences_with_bos(tmp_path: Path, tokenizer: Tokenizer):
    text = "\n".join(f"line {i} of the text" for i in range(200))
    file = written(tmp_path / "a.txt", text)
    samples = file_samples(tokenizer, CalibrationOptions(file=file, sequences=4, length=32))
    ids = tokenizer.encode(text, add_bos=False)
    rows = [[1, *ids[i : i + 31]] for i in range(0, len(ids) - 30, 31)]
    assert [row.tolist() for row in samples.sequences] == [rows[i * len(rows) // 4] for i in range(4)]
    coverage = samples.coverage.to_json()
    assert coverage["source"] == "text"
    assert coverage["digest"] == hashlib.sha256(text.encode()).hexdigest()
    assert (coverage["sequences"], coverage["tokens"], coverage["longest"]) == (4, 128, 32)
    assert coverage["distinct_tokens"] == len({token for row in samples.sequences for token in row.tolist()})
    assert coverage["seed"] is None


def test_a_long_text_is_cut_at_line_ends_and_sampled_evenly(tmp_path: Path, tokenizer: Tokenizer):
    lines = [f"number {i:07}" for i in range(20_000)]  # several portions
    file = written(tmp_path / "a.txt", "\n".join(lines))
    samples = file_samples(tokenizer, CalibrationOptions(file=file, sequences=4, length=64))
    starts = [tokenizer.decode(row[1:]).split("number ")[1][:7] for row in samples.sequences]
    assert np.abs(np.diff([int(start) for start in starts]) - 5000).max() < 600


def test_a_text_of_one_token_is_one_short_sequence(tmp_path: Path, tokenizer: Tokenizer):
    samples = file_samples(tokenizer, CalibrationOptions(file=written(tmp_path / "a.txt", "a")))
    assert [row.tolist() for row in samples.sequences] == [[1, *tokenizer.encode("a", add_bos=False)]]


def test_json_lines_hold_texts_and_conversations(tmp_path: Path, tokenizer: Tokenizer):
    records = [{"text": "one"}, {"messages": CHAT, "id": 7}, {"text": ""}, {"text": "two"}]
    file = written(tmp_path / "a.jsonl", "\n\n".join(json.dumps(record) for record in records) + "\n")
    samples = file_samples(tokenizer, CalibrationOptions(file=file))
    rendered = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nhi<|im_end|>\n"
    assert [row.tolist() for row in samples.sequences] == [tokenizer.encode(text) for text in ("one", rendered, "two")]
    assert samples.coverage.source == "jsonl"


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
        ("a.csv", "text", r"calibration files end in \.txt, \.jsonl, \.parquet"),
    ],
)
def test_a_bad_file_is_refused_with_its_name(
    tmp_path: Path, tokenizer: Tokenizer, name: str, content: str, message: str
):
    file = written(tmp_path / name, content)
    with pytest.raises(QuantkitError, match=message) as failure:
        file_samples(tokenizer, CalibrationOptions(file=file))
    assert str(file) in str(failure.value)
    assert "\n" not in str(failure.value)


def test_a_missing_file_is_refused_with_its_name(tmp_path: Path, tokenizer: Tokenizer):
    with pytest.raises(QuantkitError, match=r"absent\.txt"):
        file_samples(tokenizer, CalibrationOptions(file=tmp_path / "absent.txt"))


def test_parquet_without_pyarrow_is_named(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependency, match="pyarrow"):
        file_samples(tokenizer, CalibrationOptions(file=written(tmp_path / "a.parquet", "PAR1")))


def test_parquet_holds_texts_and_conversations(tmp_path: Path, tokenizer: Tokenizer):
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    parquet.write_table(arrow.table({"text": ["one", None], "messages": [None, CHAT]}), tmp_path / "a.parquet")
    samples = file_samples(tokenizer, CalibrationOptions(file=tmp_path / "a.parquet"))
    assert samples.sequences[0].tolist() == tokenizer.encode("one")
    assert len(samples.sequences) == 2
    with pytest.raises(MalformedFile, match="not a readable Parquet file"):
        file_samples(tokenizer, CalibrationOptions(file=written(tmp_path / "b.parquet", "PAR1 and no more")))


@pytest.mark.parametrize(
    ("option", "value"),
    [("sequences", 0), ("sequences", 1 << 33), ("length", 1), ("length", 1 << 25), ("seed", -1), ("seed", 1 << 63)],
)
def test_options_that_mean_nothing_are_refused(option: str, value: int):
    with pytest.raises(BadOption, match=f"{option} must be from .* is {value:,}$"):
        CalibrationOptions(**{option: value})


def test_sequences_beyond_the_models_context_are_refused(checkpoint: Checkpoint):
    with pytest.raises(BadOption, match="65 tokens exceed the model's context of 64"):
        calibration_samples(checkpoint, CalibrationOptions(length=65))
