"""The text that a golden model learns from, when it is a file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from golden.corpus import CJK_COPIES, TEXT_RUN_CHARS, is_held_out, read_corpus, read_text, split_corpus


def lines(count: int) -> str:
    return "".join(f"line {number} of a text that goes on for a while\n" for number in range(count))


def test_a_text_file_is_cut_into_runs_of_whole_lines_and_every_eighth_is_held_out(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(lines(8000), encoding="utf-8")
    documents = read_text(path)
    assert "".join(document.text for document in documents) == path.read_text(encoding="utf-8")
    assert all(document.text.endswith("\n") for document in documents)
    assert all(len(document.text) >= TEXT_RUN_CHARS for document in documents[:-1])
    assert [number for number, document in enumerate(documents) if document.held_out] == [7, 15][: len(documents) // 8]
    train, held_out = split_corpus(documents)
    assert len(train) + len(held_out) == len(documents)
    assert held_out


def test_a_text_too_short_to_hold_a_part_of_it_out_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(lines(100), encoding="utf-8")
    with pytest.raises(ValueError, match="too short"):
        read_text(path)


def test_east_asian_texts_come_several_times_on_the_side_of_training_and_once_on_the_other(tmp_path: Path) -> None:
    folder = tmp_path / "test" / "cjkencodings"
    folder.mkdir(parents=True)
    names = [f"test/cjkencodings/{number}-utf8.txt" for number in range(100)]
    for name in names:
        (tmp_path / name).write_text("春天来了\n", encoding="utf-8")
    (folder / "gbk.txt").write_bytes("春天来了\n".encode("gbk"))
    train, held_out = split_corpus(read_corpus(tmp_path))
    assert Counter(item.module for item in held_out) == {name: 1 for name in names if is_held_out(name)}
    assert Counter(item.module for item in train) == {name: CJK_COPIES for name in names if not is_held_out(name)}
    assert train
    assert held_out
    assert {(item.kind, item.text) for item in [*train, *held_out]} == {("cjk", "春天来了\n")}
