"""A text in chunks as llama.cpp cuts it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from quantkit.calibration.importance.chunks import text_chunks
from quantkit.calibration.text_file import read_text_file
from quantkit.errors import BadOption
from quantkit.text.tokenizer import Tokenizer

TEXT = "".join(f"The {number} of them, said def f(x): return {number}.\n" for number in range(40))


def cut(tokenizer: Tokenizer, path: Path, length: int, most: int | None = None) -> list[np.ndarray]:
    return text_chunks(tokenizer, read_text_file(path), length=length, most=most)


def test_chunks_are_one_row_cut_and_each_begins_with_bos(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(TEXT)
    row = tokenizer.encode(TEXT)
    chunks = cut(tokenizer, tmp_path / "t.txt", 100)
    assert len(chunks) == len(row) // 100
    for number, chunk in enumerate(chunks):
        assert chunk.dtype == np.int64
        assert chunk.tolist() == [1, *row[100 * number + 1 : 100 * number + 100]]


def test_no_more_are_taken_than_are_wanted_and_no_more_is_split(tokenizer: Tokenizer, tmp_path: Path) -> None:
    lines = [json.dumps({"text": text}) for text in (TEXT, "short", TEXT)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    everything = cut(tokenizer, tmp_path / "t.jsonl", 100)
    row = [1, *(i for text in (TEXT, "short", TEXT) for i in tokenizer.encode(text, add_bos=False))]
    assert len(everything) == len(row) // 100
    assert everything[-1].tolist()[1:] == row[100 * len(everything) - 99 : 100 * len(everything)]
    few = cut(tokenizer, tmp_path / "t.jsonl", 100, most=2)
    assert len(few) == 2
    assert all(np.array_equal(one, other) for one, other in zip(few, everything, strict=False))


def test_less_than_a_chunk_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("A few words.")
    tokens = len(tokenizer.encode("A few words.", add_bos=False))
    with pytest.raises(BadOption, match=rf"its {tokens} tokens are less than one chunk of 512"):
        cut(tokenizer, tmp_path / "t.txt", 512)
    assert len(cut(tokenizer, tmp_path / "t.txt", tokens + 1)) == 1
