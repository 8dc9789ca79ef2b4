"""Text to train on: how files become rows, in which order they come, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quantkit.errors import BadOption, MalformedFile
from quantkit.models.checkpoint import Checkpoint
from quantkit.text.tokenizer import Tokenizer, open_tokenizer
from quantkit.training.options import TrainingOptions
from quantkit.training.sequences import TrainingText, training_text
from tests.support.tokenizer_folders import golden_files, opened
from tests.support.tokenizer_kinds import CUTS, named
from tests.support.trainings import original

BOS, EOS = 1, 2
CHAT = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]


@pytest.fixture(scope="module")
def model() -> Checkpoint:
    return opened(golden_files())


@pytest.fixture(scope="module")
def tokenizer(model: Checkpoint) -> Tokenizer:
    return open_tokenizer(model)


def options(*files: Path, **changes: int) -> TrainingOptions:
    return replace(TrainingOptions(files=files, steps=10, length=16, held_out=0), **changes)


def stream(text: TrainingText) -> list[int]:
    """All tokens in the order of the files; every row begins with BOS."""
    rows = sorted(text.rows(0, len(text)).tolist())
    assert all(row[0] == BOS for row in rows)
    return [token for row in rows for token in row[1:]]


def test_documents_are_packed_behind_each_other(tmp_path: Path, model: Checkpoint, tokenizer: Tokenizer) -> None:
    plain, lines = tmp_path / "a.txt", tmp_path / "b.jsonl"
    plain.write_text("some text\n" * 40)
    lines.write_text("\n".join(json.dumps(record) for record in [{"text": "one"}, {"messages": CHAT}] * 30))
    text = training_text(model, model, options(plain, lines))
    chat = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nhi<|im_end|>\n"
    one, two = (tokenizer.encode(part, add_bos=False) for part in ("one", chat))
    ids = [*tokenizer.encode("some text\n" * 40, add_bos=False), EOS, *([*one, EOS, *two] * 30)]
    rows = {tuple(row) for row in text.rows(0, len(text)).tolist()}
    whole = len(ids) // 15 * 15
    assert rows == {(BOS, *ids[i : i + 15]) for i in range(0, whole, 15)}
    assert len(text) == whole // 15
    assert [(source.name, source.kind) for source in text.sources] == [("a.txt", "text"), ("b.jsonl", "jsonl")]
    assert sum(source.tokens for source in text.sources) == len(ids)


def test_a_long_record_is_not_cut_off(tmp_path: Path, model: Checkpoint) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"text": "word " * 30_000}))
    assert len(training_text(model, model, options(file))) > 30_000 // 15


def test_rows_come_in_a_new_order_every_time_around() -> None:
    rows = np.arange(40, dtype=np.int32).reshape(20, 2)
    text = TrainingText(rows, 0, 0, ())
    first, second = text.rows(0, 20), text.rows(20, 20)
    for found in (first, second):
        assert sorted(found.tolist()) == rows.tolist()
    assert first.tolist() != second.tolist()
    assert text.rows(15, 10).tolist() == [*first[15:].tolist(), *second[:5].tolist()]
    assert TrainingText(rows, 0, 1, ()).rows(0, 20).tolist() != first.tolist()


def test_rows_that_are_held_out_are_never_trained_on() -> None:
    rows = np.arange(200, dtype=np.int32).reshape(100, 2)
    text = TrainingText(rows, 5, 0, ())
    assert [row[0] // 2 for row in text.held_out.tolist()] == [10, 30, 50, 70, 90]
    trained = text.rows(0, 95).tolist()
    assert sorted(trained + text.held_out.tolist()) == rows.tolist()
    assert len(TrainingText(rows[:20], 5, 0, ()).held_out) == 1
    assert len(TrainingText(rows[:10], 5, 0, ()).held_out) == 0


def test_text_that_does_not_fill_a_sequence_is_refused(tmp_path: Path, model: Checkpoint) -> None:
    file = tmp_path / "a.txt"
    file.write_text("a few words")
    with pytest.raises(BadOption, match=r"a\.txt: \d tokens of text do not fill one sequence of 16"):
        training_text(model, model, options(file))
    file.write_text("")
    with pytest.raises(BadOption, match=r"a\.txt: \d tokens of text do not fill one sequence"):
        training_text(model, model, options(file))
    (tmp_path / "b.jsonl").write_text("{")
    with pytest.raises(MalformedFile, match=r"b\.jsonl: line 1"):
        training_text(model, model, options(tmp_path / "b.jsonl"))


def test_sequences_beyond_the_context_are_refused(tmp_path: Path, model: Checkpoint) -> None:
    with pytest.raises(BadOption, match="sequences of 1,000,000 tokens exceed the model's context of"):
        training_text(model, model, options(tmp_path / "a.txt", length=1_000_000))


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadOption, match=r"a\.txt: the model has no tokenizer, so no text can be read"):
        training_text(original(), original(), options(tmp_path / "a.txt"))


def test_a_teacher_of_another_vocabulary_is_refused(tmp_path: Path, model: Checkpoint) -> None:
    file = tmp_path / "a.txt"
    file.write_text("some text of many words\n" * 20)
    with pytest.raises(BadOption, match="the teacher has 97 tokens, the model 2,048"):
        training_text(model, original(), options(file))
    assert len(training_text(model, opened(golden_files()), options(file))) > 0
    with pytest.raises(BadOption, match=r"the teacher reads a\.txt as other tokens than the model does"):
        training_text(model, opened(named(next(iter(CUTS)))), options(file))
