"""Damaged files, a few of each kind; `python -m benchmarks.mutations` tries them by the ten thousand."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.mutations import workers
from benchmarks.mutations.gguf_values import check_values
from benchmarks.mutations.subjects import SUBJECTS, Subject
from benchmarks.mutations.trial import Outcome, Trial
from benchmarks.mutations.workers import outcomes
from quantkit import open_checkpoint

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured through /proc")

QUICK = {
    "tokenizer.json": 8,
    "tokenizer_config.json": 10,
    "config.json": 30,
    "generation_config.json": 10,
    "special_tokens_map.json": 6,
    "added_tokens.json": 6,
    "chat_template.jinja": 3,
    "model.safetensors.index.json": 20,
    "model.safetensors": 40,
    "tokenizer.model": 10,
    "recipe.toml": 60,
    "types.gguf": 60,
}
"""Mutants of each file; those that need a quantized model first are left to the command."""


@pytest.mark.parametrize("name", QUICK)
def test_a_damaged_file_gets_an_answer(name: str, tmp_path: Path) -> None:
    subject, trial = SUBJECTS[name](tmp_path), Trial(name, tmp_path)
    for number in range(QUICK[name]):
        outcome = trial.run(number, *subject.mutant(number), renders=name.endswith(".jinja"))
        assert outcome.fault is None, f"--file {name} --only {number}: {outcome.fault}"


def test_a_weight_that_is_not_what_gguf_py_reads_is_found(tmp_path: Path) -> None:
    subject = SUBJECTS["types.gguf"](tmp_path)
    for number, model in enumerate(subject.models):
        path = tmp_path / f"{number}.gguf"
        path.write_bytes(model["types.gguf"])
        checkpoint = open_checkpoint(path)
        check_values(checkpoint)
        views = {weight.shape: weight for weight in checkpoint.weights.values()}
        swapped = {name: replace(views[weight.shape], name=name) for name, weight in checkpoint.weights.items()}
        if getattr(checkpoint.weights["model.embed_tokens.weight"], "stored_as", "") != "q2_0":
            with pytest.raises(AssertionError, match="is not what gguf-py reads"):
                check_values(replace(checkpoint, weights=swapped))


def test_a_mutant_is_the_same_whenever_it_is_made(tmp_path: Path) -> None:
    for name in QUICK:
        subject = SUBJECTS[name](tmp_path)
        made = [subject.mutant(number)[1] for number in range(8)]
        assert made == [subject.mutant(number)[1] for number in range(8)]
        assert len(set(made)) > 4
        assert any(data != model[name] for data, model in zip(made, subject.models, strict=False))


def faulty(self: Trial, number: int, _model: Mapping[str, bytes], _mutant: bytes, *, renders: bool) -> Outcome:
    """A trial that goes wrong in as many ways as there are."""
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 2:
        time.sleep(60)
    if number == 3:
        os.write(2, b"native words\n")
    return Outcome(number, 0.0, 0, "Traceback" if number == 4 else None, str(renders))


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, Outcome]]:
    monkeypatch.setattr(Trial, "run", faulty)
    monkeypatch.setattr(workers, "HANG_SECONDS", 1.0)
    subject = Subject("x", ({"x": b"abc"},), lambda data, _: data)
    yield {o.number: o for o in outcomes(subject, range(5, 0, -1), workers=2, render_every=2, scratch=tmp_path)}


def test_what_kills_hangs_speaks_or_raises_is_found_and_the_rest_goes_on(found: dict[int, Outcome]) -> None:
    assert sorted(found) == [1, 2, 3, 4, 5]
    assert found[1].fault == "the process died: SIGKILL"
    assert (found[2].fault or "").startswith("no answer after")
    assert found[3].fault == "wrote on stderr: native words\n"
    assert found[4].fault == "Traceback"
    assert found[5].fault is None
    assert (found[4].answer, found[5].answer) == ("True", "False")
