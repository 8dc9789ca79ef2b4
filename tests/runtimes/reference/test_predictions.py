"""Many prompts in one call: the same numbers as one by one, every weight read once, and memory that stays bounded."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from quantkit.errors import BadOption
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.recognition import parse_config
from quantkit.protocols import Predictions
from quantkit.runtimes.reference import forward, weights
from quantkit.runtimes.reference.formulas import round_to_int8
from quantkit.runtimes.reference.session import ReferenceSession
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView, TensorView
from tests.support.memory import memory_checkpoint, random_arrays, tiny_config

LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0],
    "long_factor": [1.0, 1.5, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0],
    "original_max_position_embeddings": 16,
}
PROMPTS = [[int(token) for token in (np.arange(n) * 31 + 7 * n) % 97] for n in (17, 1, 40, 16, 5)]
"""Of ragged lengths, on both sides of LongRoPE's original context."""
CONFIGS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "longrope": {"rope_scaling": LONGROPE},
}


def rounding(exact: np.ndarray) -> float:
    """What float32 may differ by in another order of operations: sums of 64 products, logits of order one."""
    return float(64 * np.finfo(np.float32).eps * np.abs(exact).max())


def predicted(checkpoint: Checkpoint, *, budget: int = 1 << 30) -> list[Predictions]:
    return list(ReferenceSession(checkpoint, budget=budget).predictions(PROMPTS, int8_run=32))


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS.keys())
def test_many_prompts_are_predicted_as_each_alone(changes):
    checkpoint = memory_checkpoint(tiny_config(**changes))
    together = predicted(checkpoint)
    assert len(together) == len(PROMPTS)
    for ids, prediction in zip(PROMPTS, together, strict=True):
        alone = ReferenceSession(checkpoint).logits(ids)
        assert prediction.exact.shape == (len(ids), 97)
        assert prediction.exact.dtype == np.float32
        np.testing.assert_allclose(prediction.exact, alone, atol=rounding(alone))


def test_every_prompt_turns_by_the_factors_of_its_own_length():
    """The short prompts with the short factors, the long ones with the long, though they run together."""
    together = predicted(memory_checkpoint(tiny_config(rope_scaling=LONGROPE)))
    for ids, prediction in zip(PROMPTS, together, strict=True):
        right, wrong = ("long_factor", "short_factor")[:: 1 if len(ids) > 16 else -1]
        for factor, same in ((right, True), (wrong, len(ids) == 1)):  # position 0 does not turn
            only = LONGROPE | dict.fromkeys(("short_factor", "long_factor"), LONGROPE[factor])
            logits = ReferenceSession(memory_checkpoint(tiny_config(rope_scaling=only))).logits(ids)
            close = bool(np.abs(prediction.exact - logits).max() <= rounding(logits))
            assert close is same, (len(ids), factor)


def torch_rounded(checkpoint: Checkpoint, ids: list[int]) -> np.ndarray:
    """The torch module's logits, what enters every matrix rounded on its way."""
    torch = pytest.importorskip("torch", reason="the other forward pass needs quantkit[torch]")
    from quantkit.models.torch_model import MiniCPM  # noqa: PLC0415 - imports torch

    model = MiniCPM(checkpoint.spec)
    model.load_state_dict({name: torch.from_numpy(view.read()) for name, view in checkpoint.weights.items()})
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, args: torch.from_numpy(round_to_int8(args[0].numpy(), 32)))
    # The head is a function there. Its input is the norm's output over a power of two, which commutes with rounding.
    assert checkpoint.spec.logit_divisor == 4
    model.model.norm.register_forward_hook(lambda *called: torch.from_numpy(round_to_int8(called[2].numpy(), 32)))
    with torch.no_grad():
        return model(torch.tensor([ids]))[0].numpy()


def test_the_input_of_every_matrix_is_rounded_and_nothing_else():
    checkpoint = memory_checkpoint(tiny_config(tie_word_embeddings=False))
    together = predicted(checkpoint)
    expected = [torch_rounded(checkpoint, ids) for ids in PROMPTS]
    exact, rounded = (np.concatenate(logits) for logits in zip(*((p.exact, p.rounded) for p in together), strict=True))
    # 8 bits: a relative error of about 0.4 % per matrix, on logits of order one, through 22 matrices.
    assert 1e-3 < np.abs(rounded - exact).mean() < 2e-2
    off = np.abs(rounded - np.concatenate(expected)).max(axis=-1)
    assert np.median(off) <= rounding(exact), "a few may have a code that tipped over its middle, not most"


def test_rounding_is_left_out_where_it_is_not_asked_for():
    session = ReferenceSession(memory_checkpoint(tiny_config()))
    both = list(session.predictions(PROMPTS, int8_run=32))
    for prediction, other in zip(session.predictions(PROMPTS, int8_run=None), both, strict=True):
        assert prediction.rounded is None
        np.testing.assert_array_equal(prediction.exact, other.exact)


def counted(checkpoint: Checkpoint) -> tuple[Checkpoint, Counter[tuple[str, int]]]:
    """The checkpoint, and how often each row (row 0 for all of a quantized matrix) is read from now on."""
    reads: Counter[tuple[str, int]] = Counter()

    def dense(view: TensorView) -> Callable[[int, int], np.ndarray]:
        def fetch(start: int, stop: int) -> np.ndarray:
            reads.update((view.name, row) for row in range(start, stop))
            return view.fetch(start, stop)

        return fetch

    def quantized(view: QuantizedView) -> Callable[[], QuantizedTensor]:
        def read() -> QuantizedTensor:
            reads[view.name, 0] += 1
            return view.read()

        return read

    views = {
        name: replace(view, read=quantized(view))
        if isinstance(view, QuantizedView)
        else replace(view, fetch=dense(view))
        for name, view in checkpoint.weights.items()
    }
    return replace(checkpoint, weights=views), reads


def quantized_checkpoint(**changes: Any) -> Checkpoint:
    """The tiny model with int4 codes in every matrix."""
    scheme, rng = AffineGroups(bits=4, group_size=32), np.random.default_rng(1)
    tensors: dict[str, Any] = dict(random_arrays(parse_config(tiny_config(**changes))))
    for name, values in tensors.items():
        if values.ndim == 2:
            groups = (values.shape[0], values.shape[1] // 32)
            codes = rng.integers(0, 16, values.shape, np.uint8)
            scale = rng.uniform(0.01, 0.05, groups).astype(np.float16)
            tensors[name] = QuantizedTensor(scheme, codes, {"scale": scale, "zero": np.full(groups, 8, np.uint8)})
    return memory_checkpoint(tiny_config(**changes), tensors)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("make", [quantized_checkpoint, lambda **changes: memory_checkpoint(tiny_config(**changes))])
def test_every_weight_is_read_once_for_all_prompts_and_both_arithmetics(make, tied):
    checkpoint, reads = counted(make(tie_word_embeddings=tied))
    predicted(checkpoint)
    asked_for = {token for prompt in PROMPTS for token in prompt}
    for name, view in checkpoint.weights.items():
        rows = range(view.shape[0])
        if isinstance(view, QuantizedView):
            rows = range(1)
        elif name == "model.embed_tokens.weight" and not tied:
            rows = sorted(asked_for)
        assert {row: n for (read, row), n in reads.items() if read == name} == dict.fromkeys(rows, 1), name


def test_a_head_beyond_the_budget_is_read_in_pieces_with_the_same_result(monkeypatch):
    for checkpoint in (memory_checkpoint(tiny_config()), quantized_checkpoint()):
        expected = predicted(checkpoint)
        with monkeypatch.context() as patch:
            patch.setattr(weights, "PIECE_ELEMENTS", 10 * 64)
            for prediction, other in zip(predicted(checkpoint, budget=0), expected, strict=True):
                np.testing.assert_allclose(prediction.exact, other.exact, atol=rounding(other.exact))


def test_work_cut_into_small_runs_gives_the_same_predictions(monkeypatch):
    checkpoint = memory_checkpoint(tiny_config(rope_scaling=LONGROPE))
    expected = predicted(checkpoint)
    for name, value in {"TOKENS": 7, "QUERIES": 3, "SCORES": 100, "MULTIPLICATIONS": 5000}.items():
        monkeypatch.setattr(forward, name, value)
    for prediction, other in zip(predicted(checkpoint), expected, strict=True):
        np.testing.assert_allclose(prediction.exact, other.exact, atol=rounding(other.exact))


def test_progress_counts_up_to_the_end_and_moves_inside_a_block(monkeypatch):
    monkeypatch.setattr(forward, "MULTIPLICATIONS", 50_000)
    told: list[tuple[str, int, int]] = []
    session = ReferenceSession(memory_checkpoint(tiny_config()))
    prompts = PROMPTS[2:3]
    for _ in session.predictions(prompts, int8_run=32, progress=lambda *report: told.append(report)):
        pass
    labels = list(dict.fromkeys(what for what, _, _ in told))
    assert labels == ["embedding", "block 1 of 3", "block 2 of 3", "block 3 of 3", "logits of prompt 1 of 1"]
    done = [count for _, count, _ in told]
    assert done == sorted(done)
    # One token meets every weight of the matrices once, in each of the two arithmetics; the table serves as head.
    matrices = [view for view in session._weights._views.values() if len(view.shape) == 2]
    assert {total for _, _, total in told} == {2 * 40 * sum(view.size for view in matrices)} == {done[-1]}
    for block in labels[1:]:
        assert len({count for what, count, _ in told if what == block}) > 5


def peak_bytes(layers: int, prompts: int) -> int:
    """Most bytes held at a time while the predictions are read and dropped; weights on disk do not count."""
    config = tiny_config(num_hidden_layers=layers, vocab_size=20_000, hidden_size=128, intermediate_size=512)
    checkpoint = memory_checkpoint(config, random_arrays(parse_config(config), dtype=ml_dtypes.bfloat16))
    session = ReferenceSession(checkpoint)
    tracemalloc.start()
    try:
        for prediction in session.predictions([[1] * 16] * prompts, int8_run=32):
            del prediction
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_grows_neither_with_the_layers_nor_with_the_logits_of_all_prompts():
    few = peak_bytes(layers=2, prompts=2)
    # A block has 1 MB of weights in float32, a prompt 2.5 MB of logits, the head 10 MB.
    assert peak_bytes(layers=12, prompts=2) < few + (1 << 18)
    assert peak_bytes(layers=2, prompts=8) < few + (2 << 20)


@pytest.mark.parametrize("prompt", [[], [97], [-1], [1, 2, 1000]])
def test_a_prompt_that_cannot_run_is_refused_before_any_work(prompt):
    checkpoint, reads = counted(memory_checkpoint(tiny_config()))
    with pytest.raises(BadOption):
        ReferenceSession(checkpoint).predictions([[1, 2, 3], prompt], int8_run=None)
    assert not reads


def test_no_prompts_are_no_predictions():
    assert list(ReferenceSession(memory_checkpoint(tiny_config())).predictions([], int8_run=32)) == []
