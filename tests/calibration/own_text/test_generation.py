"""Calibration text that the model writes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import cycle, islice

import numpy as np
import pytest
import torch

from quantkit.calibration.own_text.generation import (
    LEAST_SHARE,
    OwnText,
    drawn_tokens,
    own_text,
)
from quantkit.calibration.own_text.generation_work import generation_work, step_work
from quantkit.calibration.own_text.prompts import prompts_digest, read_prompts
from quantkit.calibration.own_text.repetition import SHORTEST
from quantkit.calibration.samples import CalibrationOptions
from quantkit.calibration.sources import calibration_samples
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.loading import load_model
from quantkit.text.tokenizer import Tokenizer
from tests.support.memory import memory_checkpoint, random_arrays

NO_TOKENIZER = "the model has no tokenizer"


def written(checkpoint: Checkpoint, tokenizer: Tokenizer | str, sequences: int, length: int, **choices) -> OwnText:
    seed = choices.pop("seed", 0)
    options = CalibrationOptions(length=length, seed=seed)
    return own_text(checkpoint, tokenizer, options, sequences=sequences, **choices)


def parrot(checkpoint: Checkpoint) -> Checkpoint:
    """A model whose blocks do nothing and whose embeddings are far apart: it writes its last token again."""
    arrays = random_arrays(checkpoint.spec)
    for name, values in arrays.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            values[:] = 0
        elif name.endswith("embed_tokens.weight"):
            values[:] *= 40
    return memory_checkpoint(checkpoint.config, arrays)


def test_kinds_take_turns_and_sequences_begin_with_their_openings(checkpoint: Checkpoint, tokenizer: Tokenizer):
    own = written(checkpoint, tokenizer, 16, 48)
    prompts = read_prompts(tokenizer)
    assert own.kinds == tuple(islice(cycle(prompts.of_kind), 16))
    for index, (row, kind) in enumerate(zip(own.sequences, own.kinds, strict=True)):
        expected = prompts.of_kind[kind][index // len(prompts.of_kind)][:48]
        assert row[: len(expected)].tolist() == expected
        assert row.shape == (48,)
        assert row.dtype == np.int64
    assert (own.digest, own.note, own.tokens) == (prompts_digest(), None, 16 * 48)
    assert own.distinct_tokens == len({token for row in own.sequences for token in row.tolist()})


def test_openings_are_used_again_with_other_numbers(checkpoint: Checkpoint, tokenizer: Tokenizer):
    prompts = read_prompts(tokenizer).of_kind
    again = len(prompts) * len(prompts["prose"])
    own = written(checkpoint, tokenizer, again + 1, 40)
    first, last = own.sequences[0], own.sequences[again]
    opening = len(prompts["prose"][0])
    assert own.kinds[again] == "prose"
    assert first[:opening].tolist() == last[:opening].tolist()
    assert first.tolist() != last.tolist()
    assert max(Counter(own.kinds).values()) - min(Counter(own.kinds).values()) <= 1


@pytest.mark.parametrize("bfloat16", [False, True])
def test_text_depends_on_the_seed_and_not_on_threads(checkpoint: Checkpoint, tokenizer: Tokenizer, bfloat16: bool):
    def rows(threads: int, seed: int) -> list[bytes]:
        own = written(checkpoint, tokenizer, 35, 40, threads=threads, seed=seed, bfloat16=bfloat16)  # two batches
        return [row.tobytes() for row in own.sequences]

    assert rows(1, 0) == rows(2, 0) == rows(3, 0) != rows(1, 1)


def test_a_sequence_does_not_depend_on_its_batch(checkpoint: Checkpoint, tokenizer: Tokenizer):
    few, many = written(checkpoint, tokenizer, 3, 40), written(checkpoint, tokenizer, 40, 40)
    same = [np.array_equal(one, other) for one, other in zip(few.sequences, many.sequences, strict=False)]
    assert all(same), "but for the last bits of sums, which decide nothing here"


def test_tokens_follow_from_the_tokens_before_them(checkpoint: Checkpoint, tokenizer: Tokenizer):
    """The cache, the shared steps and the draws must amount to: token t drawn from the likely ones at t - 1."""
    own = written(checkpoint, tokenizer, 3, 60)
    model = load_model(checkpoint)
    openings = read_prompts(tokenizer).of_kind
    for index, (row, kind) in enumerate(zip(own.sequences, own.kinds, strict=True)):
        logits = model(torch.from_numpy(row)[None])[0].numpy().astype(np.float64)
        uniform = np.random.default_rng([0, index]).random(60)
        for position in range(len(openings[kind][0]), 60):
            p = np.exp(logits[position - 1] - logits[position - 1].max())
            p[p < LEAST_SHARE] = 0
            cumulative = np.cumsum(p / p.sum())
            below = cumulative[row[position] - 1] if row[position] else 0.0
            assert p[row[position]] > 0
            assert below - 1e-4 <= uniform[position] <= cumulative[row[position]] + 1e-4


@pytest.mark.parametrize("vocabulary", [4, 511, 512, 513, 1500])
def test_drawing_follows_the_distribution_of_the_likely_tokens(vocabulary: int):
    shares = np.zeros(vocabulary)
    shares[[0, 2, vocabulary - 1]] = 0.5, 0.2, 0.3
    shares[1] = 0.5 * LEAST_SHARE / 2
    logits = torch.from_numpy(np.log(shares, where=shares > 0, out=np.full(vocabulary, -np.inf))).float()
    drawn = drawn_tokens(logits.repeat(4000, 1), np.random.default_rng(0).random(4000))
    counts = np.bincount(drawn, minlength=vocabulary) / 4000
    assert np.abs(counts[[0, 2, vocabulary - 1]] - [0.5, 0.2, 0.3]).max() < 0.03
    places = np.array([0.0, 0.5 + LEAST_SHARE / 8, np.nextafter(1, 0)])  # the second would be token 1's
    assert drawn_tokens(logits.repeat(3, 1), places).tolist() == [0, 2, vocabulary - 1]


def test_drawing_among_many_equals():
    drawn = drawn_tokens(torch.full((3, 10_000), 2.5), np.array([0.0, 0.5, np.nextafter(1, 0)]))
    assert drawn.tolist() == [0, 5000, 9999]


def test_an_end_of_text_does_not_end_a_sequence(checkpoint: Checkpoint, tokenizer: Tokenizer):
    ending = replace(checkpoint, spec=replace(checkpoint.spec, eos_token_ids=tuple(range(checkpoint.spec.vocab_size))))
    own, same = written(checkpoint, tokenizer, 3, 40), written(ending, tokenizer, 3, 40)
    assert [row.tolist() for row in own.sequences] == [row.tolist() for row in same.sequences]


def test_a_loop_is_left_for_the_next_opening(checkpoint: Checkpoint, tokenizer: Tokenizer):
    own = written(parrot(checkpoint), tokenizer, 2, 120)
    prompts = read_prompts(tokenizer).of_kind
    for row, kind in zip(own.sequences, own.kinds, strict=True):
        first, second = prompts[kind][:2]
        repeated = row[len(first) - 1 : len(first) + SHORTEST - 1]
        assert set(repeated.tolist()) == {first[-1]}
        rest = row[len(first) + SHORTEST - 1 :].tolist()
        assert rest[: len(second)] == second[: len(rest)]
    assert own.repeated_tokens >= 2 * SHORTEST


def test_without_a_tokenizer_texts_begin_with_drawn_tokens(checkpoint: Checkpoint):
    own = written(checkpoint, NO_TOKENIZER, 5, 30)
    assert own.kinds == ("drawn",) * 5
    assert own.note is not None
    assert own.note.startswith(NO_TOKENIZER)
    assert len({row[0] for row in own.sequences} | {row[1] for row in own.sequences}) > 2
    assert [row.tolist() for row in written(checkpoint, NO_TOKENIZER, 5, 30, threads=2).sequences] == [
        row.tolist() for row in own.sequences
    ]


def test_what_it_covers_is_told_in_words(checkpoint: Checkpoint, tokenizer: Tokenizer):
    own = replace(written(checkpoint, tokenizer, 9, 16), tokens=65536, distinct_tokens=1893, repeated_tokens=262)
    assert own.in_words() == (
        "own text: 9 sequences of 7 kinds (2 prose, 2 chinese, 1 dialogue, 1 code, 1 mathematics, 1 tools, 1 lists), "
        "65,536 tokens, 1,893 distinct, 0.4 % in repetitions"
    )
    assert written(checkpoint, NO_TOKENIZER, 1, 8).in_words().startswith("own text: 1 sequence of 1 kind (1 drawn), 8 ")


def test_kinds_are_sources_that_count_1_together(checkpoint: Checkpoint, tokenizer: Tokenizer):
    samples = calibration_samples(checkpoint, CalibrationOptions(sequences=9, length=16))
    own = written(checkpoint, tokenizer, 9, 16)
    sources = samples.coverage.sources
    assert [source.name for source in sources] == [f"own text: {kind}" for kind in dict.fromkeys(own.kinds)]
    assert sum(source.weight for source in sources) == pytest.approx(1.0)
    assert samples.coverage.own_text == own.in_words()
    for kind, sequence in zip(own.kinds, own.sequences, strict=True):
        mine = [
            row.tolist()
            for row, origin in zip(samples.sequences, samples.origins, strict=True)
            if sources[origin].name == f"own text: {kind}"
        ]
        assert sequence.tolist() in mine


def test_progress_counts_the_work_of_every_step_once(checkpoint: Checkpoint):
    calls: list[tuple[str, float, float]] = []
    options = CalibrationOptions(sequences=20, length=24)
    calibration_samples(checkpoint, options, threads=2, progress=lambda *call: calls.append(call))
    what, done, total = calls[-1]
    assert what == "generating calibration text"
    assert done == pytest.approx(total) == pytest.approx(generation_work(checkpoint.spec, options))
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)
    assert step_work(checkpoint.spec, 16, 20) > step_work(checkpoint.spec, 16, 0), "later steps read more keys"
