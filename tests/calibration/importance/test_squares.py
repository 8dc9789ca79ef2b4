"""Sums of squares of what every matrix reads, against hooks in the whole model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quantkit.calibration.importance import squares
from quantkit.calibration.importance.squares import input_squares
from quantkit.errors import NonFiniteValues
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.folding import with_architecture
from quantkit.models.loading import load_model
from tests.support.memory import memory_checkpoint, random_arrays, tiny_config

CONFIG = tiny_config(tie_word_embeddings=False, dim_model_base=24)


@pytest.fixture(scope="module")
def chunks() -> list[np.ndarray]:
    return list(np.random.default_rng(5).integers(0, 97, (5, 24)))


def seen(checkpoint: Checkpoint, chunks: list[np.ndarray]) -> dict[str, np.ndarray]:
    """By weight name the sums over whole forwards, float64, the head's inputs included."""
    sums: dict[str, np.ndarray] = {}

    def add(name: str, x: torch.Tensor) -> None:
        sums[name] = sums.get(name, 0) + x.double().square().sum(0).numpy()

    model = load_model(checkpoint)
    for name, module in model.named_modules():
        if name.endswith("proj"):
            module.register_forward_pre_hook(lambda _, args, name=name: add(f"{name}.weight", args[0][0]))
    for row in chunks:
        states = model.states(torch.from_numpy(row)[None])
        add("lm_head.weight", model.model.norm(states)[0])
    return sums


def test_they_are_those_of_the_whole_model(chunks: list[np.ndarray]) -> None:
    checkpoint = memory_checkpoint(CONFIG)
    wanted = seen(checkpoint, chunks)
    found = input_squares(checkpoint, chunks, head=True)
    assert found.keys() == wanted.keys()
    assert len(found) == 3 * 7 + 1
    for name, values in found.items():
        assert values.dtype == np.float32
        assert np.allclose(values, wanted[name], rtol=2e-5, atol=0), name
    assert input_squares(checkpoint, chunks).keys() == wanted.keys() - {"lm_head.weight"}


def test_threads_change_no_bit_and_waves_hardly_one(chunks: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = memory_checkpoint(CONFIG)
    one = input_squares(checkpoint, chunks, head=True)
    three = input_squares(checkpoint, chunks, head=True, threads=3)
    assert all(np.array_equal(one[name], three[name]) for name in one)
    monkeypatch.setattr(squares, "WAVE_TOKENS", 50)
    told: list[tuple[float, float]] = []
    waves = input_squares(checkpoint, chunks, head=True, progress=lambda _, done, total: told.append((done, total)))
    assert all(np.allclose(one[name], waves[name], rtol=2e-7, atol=0) for name in one)
    assert told == [(done, 3 * 120) for done in (0, 48, 96, 144, 192, 240, 288, 312, 336)]


def test_folding_changes_the_heads_alone(chunks: list[np.ndarray]) -> None:
    """A folded model is the same function: its blocks read the same, its head what its norm was multiplied by."""
    checkpoint = memory_checkpoint(CONFIG)
    native = input_squares(checkpoint, chunks, head=True)
    folded = input_squares(with_architecture(checkpoint, "llama"), chunks, head=True)
    factor = native.pop("lm_head.weight") / folded.pop("lm_head.weight")
    assert np.ptp(factor) < 1e-4 * factor.mean()
    assert factor.mean() != pytest.approx(1)
    assert all(np.allclose(native[name], folded[name], rtol=1e-3, atol=0) for name in native)


def test_what_is_no_number_is_named(chunks: list[np.ndarray]) -> None:
    arrays = random_arrays(memory_checkpoint(CONFIG).spec)
    arrays["model.layers.1.input_layernorm.weight"][:] = 3e38
    with pytest.raises(NonFiniteValues, match=r"model\.layers\.1\.\S+: its inputs on this text"):
        input_squares(memory_checkpoint(CONFIG, arrays), chunks)
