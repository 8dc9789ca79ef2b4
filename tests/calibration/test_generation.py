"""Calibration text that the model writes."""

from __future__ import annotations

from importlib import resources

import numpy as np
import pytest
import torch

from quantkit.calibration.generation import _sampled, generated_samples
from quantkit.calibration.generation_work import generation_work, step_work
from quantkit.calibration.samples import CalibrationOptions
from quantkit.calibration.sources import calibration_samples
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.loading import load_model
from quantkit.text.tokenizer import Tokenizer


def test_generated_sequences_begin_with_the_bundled_openings(checkpoint: Checkpoint, tokenizer: Tokenizer):
    samples = generated_samples(checkpoint, tokenizer, CalibrationOptions(sequences=6, length=48))
    lines = resources.files("quantkit.calibration").joinpath("prompts.txt").read_text("utf-8").splitlines()
    assert len(lines) == 64
    for row, line in zip(samples.sequences, lines, strict=False):
        kind, opening = line.split("\t")
        text = opening.replace("\\n", "\n")
        if kind == "chat":
            text = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        expected = tokenizer.encode(text)[:48]
        assert row[: len(expected)].tolist() == expected
        assert len(row) == 48
    assert [source.name for source in samples.coverage.sources] == ["own text"]
    assert samples.coverage.tokens == 6 * 48


def test_generation_depends_on_the_seed_and_not_on_threads(checkpoint: Checkpoint, tokenizer: Tokenizer):
    def rows(threads: int, seed: int) -> list[bytes]:
        options = CalibrationOptions(sequences=18, length=40, seed=seed)  # two batches
        return [row.tobytes() for row in generated_samples(checkpoint, tokenizer, options, threads=threads).sequences]

    assert rows(1, 0) == rows(2, 0) != rows(1, 1)


def test_generated_tokens_follow_from_the_tokens_before_them(checkpoint: Checkpoint, tokenizer: Tokenizer):
    """The KV cache, the shared steps and the draws must amount to: token t drawn from the model's softmax at t - 1."""
    samples = generated_samples(checkpoint, tokenizer, CalibrationOptions(sequences=3, length=60))
    model = load_model(checkpoint)
    for index, row in enumerate(samples.sequences):
        logits = model(torch.from_numpy(row)[None])[0].numpy().astype(np.float64)
        uniform = np.random.default_rng([0, index]).random(60)
        for position in range(45, 60):  # beyond the longest of these openings
            p = np.exp(logits[position - 1] - logits[position - 1].max())
            cumulative = np.cumsum(p / p.sum())
            below = cumulative[row[position] - 1] if row[position] else 0.0
            assert below - 1e-5 <= uniform[position] <= cumulative[row[position]] + 1e-5


def test_sampling_follows_the_distribution():
    logits = torch.log(torch.tensor([0.5, 0.0, 0.2, 0.3])).repeat(20_000, 1)
    counts = np.bincount(_sampled(logits, np.random.default_rng(0).random(20_000)), minlength=4) / 20_000
    assert np.abs(counts - [0.5, 0.0, 0.2, 0.3]).max() < 0.01
    assert counts[1] == 0
    assert _sampled(logits[:2], np.array([0.0, np.nextafter(1, 0)])).tolist() == [0, 3]


def test_progress_counts_the_work_of_every_step_once(checkpoint: Checkpoint):
    calls: list[tuple[str, float, float]] = []
    options = CalibrationOptions(sequences=20, length=24)
    calibration_samples(checkpoint, options, threads=2, progress=lambda *call: calls.append(call))
    what, done, total = calls[-1]
    assert what == "generating calibration text"
    assert done == pytest.approx(total) == pytest.approx(generation_work(checkpoint.spec, options))
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)
    assert step_work(checkpoint.spec, 20) > step_work(checkpoint.spec, 0), "later steps read more keys and values"
