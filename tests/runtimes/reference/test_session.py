"""The oracle against the torch module, against closed forms, and against itself by other ways."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from quantkit.errors import BadOption
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.recognition import parse_config
from quantkit.runtimes.reference.formulas import rms_norm
from quantkit.runtimes.reference.runtime import RUNTIME
from quantkit.runtimes.reference.session import ReferenceSession
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.schemes.affine_groups import AffineGroups
from tests.support.memory import memory_checkpoint, random_arrays, tiny_config

LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0],
    "long_factor": [1.0, 1.5, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0],
    "original_max_position_embeddings": 16,
}
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": False}
CONFIGS: dict[str, dict[str, Any]] = {
    "tied MiniCPM with plain rope": {},
    "untied MiniCPM": {"tie_word_embeddings": False},
    "head_dim that is not hidden / heads": {"head_dim": 24, "tie_word_embeddings": False},
    "no grouping of queries": {"num_key_value_heads": 4},
    "one key for all queries": {"num_key_value_heads": 1},
    "longrope, extended": {"rope_scaling": LONGROPE},
    "another rope_theta": {"rope_theta": 500000.0},
    "Llama": LLAMA,
}
TOKENS = [1, *((np.arange(39) * 31 + 7) % 97)]


def torch_logits(checkpoint: Checkpoint, token_ids: list[int]) -> np.ndarray:
    torch = pytest.importorskip("torch", reason="the other forward pass needs quantkit[torch]")
    from quantkit.models.torch_model import MiniCPM  # noqa: PLC0415 - imports torch

    model = MiniCPM(checkpoint.spec)
    weights = {name: torch.from_numpy(view.read().astype(np.float32)) for name, view in checkpoint.weights.items()}
    model.load_state_dict(weights)
    with torch.no_grad():
        return model(torch.tensor([[int(token) for token in token_ids]]))[0].numpy()


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize("length", [1, 16, 40])
def test_it_agrees_with_the_torch_module(changes, length):
    checkpoint = memory_checkpoint(tiny_config(**changes))
    expected = torch_logits(checkpoint, TOKENS[:length])
    logits = ReferenceSession(checkpoint).logits(TOKENS[:length])
    assert logits.dtype == np.float32
    assert logits.shape == (length, 97)
    # Float32 rounding in another order of operations; logits are of order one and each sums 64 products.
    np.testing.assert_allclose(logits, expected, atol=64 * np.finfo(np.float32).eps * np.abs(expected).max())


def test_every_scalar_of_the_family_moves_the_logits():
    base = ReferenceSession(memory_checkpoint(tiny_config())).logits(TOKENS)
    for change in ({"scale_emb": 11}, {"scale_depth": 1.3}, {"dim_model_base": 17}, {"rope_theta": 5000.0}):
        changed = ReferenceSession(memory_checkpoint(tiny_config(**change))).logits(TOKENS)
        assert np.abs(changed - base).max() > 1e-2, change


@pytest.mark.parametrize("changes", [{}, {"rope_scaling": LONGROPE}], ids=["plain rope", "longrope"])
def test_the_next_logits_of_a_growing_sequence_are_the_rows_of_logits(changes):
    checkpoint = memory_checkpoint(tiny_config(**changes))
    growing, fresh = ReferenceSession(checkpoint), ReferenceSession(checkpoint)
    for length in range(1, len(TOKENS) + 1):
        np.testing.assert_allclose(
            growing.next_logits(TOKENS[:length]), fresh.logits(TOKENS[:length])[-1], atol=1e-5, err_msg=str(length)
        )


def test_the_next_logits_after_a_change_of_mind_forget_what_was_changed():
    checkpoint = memory_checkpoint(tiny_config())
    session = ReferenceSession(checkpoint)
    for ids in ([1, 2, 3, 4, 5], [1, 2, 9], [1, 2, 9], [1, 2], [7], [7, 1, 2, 3, 4, 5]):
        expected = ReferenceSession(checkpoint).logits(ids)[-1]
        np.testing.assert_allclose(session.next_logits(ids), expected, atol=1e-5)


def test_a_refused_call_leaves_the_session_usable():
    session = ReferenceSession(memory_checkpoint(tiny_config()))
    expected = session.next_logits([1, 2, 3])
    with pytest.raises(BadOption):
        session.next_logits([1, 2, 3, 97])
    np.testing.assert_allclose(session.next_logits([1, 2, 3]), expected, atol=1e-5)


def test_an_extended_context_uses_the_long_factors_from_the_first_token_on():
    checkpoint = memory_checkpoint(tiny_config(rope_scaling=LONGROPE))
    only_long = dict(LONGROPE, short_factor=LONGROPE["long_factor"])
    always_long = memory_checkpoint(tiny_config(rope_scaling=only_long))
    same = [ReferenceSession(model).logits(TOKENS[:17]) for model in (checkpoint, always_long)]
    np.testing.assert_array_equal(*same)
    other = [ReferenceSession(model).logits(TOKENS[:16]) for model in (checkpoint, always_long)]
    assert np.abs(other[0] - other[1]).max() > 1e-2


def test_no_position_sees_what_follows():
    session = ReferenceSession(memory_checkpoint(tiny_config()))
    one, other = session.logits([1, 5, 9, 20]), session.logits([1, 5, 80, 81])
    np.testing.assert_allclose(one[:2], other[:2], atol=1e-6)
    assert np.abs(one[2] - other[2]).max() > 1e-2


def test_the_trace_follows_the_residual_stream():
    checkpoint = memory_checkpoint(tiny_config())
    trace = ReferenceSession(checkpoint).trace(TOKENS)
    assert list(trace) == ["embedding", "block 0", "block 1", "block 2", "final norm", "logits"]
    assert all(stage.dtype == np.float32 for stage in trace.values())
    table = checkpoint.weights["model.embed_tokens.weight"].read()
    np.testing.assert_array_equal(trace["embedding"], table[TOKENS] * np.float32(12))
    weight = checkpoint.weights["model.norm.weight"].read()
    np.testing.assert_allclose(trace["final norm"], rms_norm(trace["block 2"], weight, 1e-5), atol=1e-6)
    np.testing.assert_allclose(trace["logits"], trace["final norm"] / 4 @ table.T, atol=1e-5)


def test_quantized_weights_run_as_what_they_dequantize_to():
    config = tiny_config()
    arrays = dict(random_arrays(parse_config(config)))
    rng = np.random.default_rng(1)
    spec = AffineGroups(bits=4, group_size=32, symmetric=False)
    quantized: dict[str, Any] = dict(arrays)
    for name, values in arrays.items():
        if values.ndim == 2:
            groups = (values.shape[0], values.shape[1] // 32)
            tensor = QuantizedTensor(
                spec,
                rng.integers(0, 16, values.shape, np.uint8),
                {
                    "scale": rng.uniform(0.01, 0.05, groups).astype(np.float16),
                    "zero": rng.integers(0, 16, groups, np.uint8),
                },
            )
            quantized[name] = tensor
            scale = np.repeat(tensor.scale.astype(np.float64), 32, axis=1)
            zero = np.repeat(tensor.zero.astype(np.float64), 32, axis=1)
            arrays[name] = (scale * (tensor.codes - zero)).astype(np.float32)
    expected = ReferenceSession(memory_checkpoint(config, arrays)).logits(TOKENS)
    np.testing.assert_array_equal(ReferenceSession(memory_checkpoint(config, quantized)).logits(TOKENS), expected)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_short_floats_are_widened_exactly(dtype):
    config = tiny_config()
    arrays = random_arrays(parse_config(config), dtype=dtype)
    wide = {name: values.astype(np.float32) for name, values in arrays.items()}
    short = ReferenceSession(memory_checkpoint(config, arrays)).logits(TOKENS)
    np.testing.assert_array_equal(short, ReferenceSession(memory_checkpoint(config, wide)).logits(TOKENS))


def test_weights_beyond_the_budget_are_read_anew_with_the_same_result():
    checkpoint = memory_checkpoint(tiny_config())
    expected = ReferenceSession(checkpoint).logits(TOKENS)
    for budget in (0, 20_000, 100_000):
        session = ReferenceSession(checkpoint, budget=budget)
        np.testing.assert_array_equal(session.logits(TOKENS), expected)
        kept = session._weights._kept.values()
        assert sum(values.nbytes for values in kept) <= budget
        np.testing.assert_array_equal(session.logits(TOKENS), expected)


@pytest.mark.parametrize("token_ids", [[], [97], [-1], [1, 2, 1000]])
def test_tokens_that_do_not_exist_are_refused(token_ids):
    session = ReferenceSession(memory_checkpoint(tiny_config()))
    for call in (session.logits, session.next_logits, session.trace):
        with pytest.raises(BadOption):
            call(token_ids)


def test_the_attention_factor_scales_what_is_rotated():
    # Queries and keys both carry it, so scores grow by its square: 1 + ln(64/16)/ln(16) = 1.5.
    config = tiny_config(rope_scaling=LONGROPE)
    assert parse_config(config).rope.attention_factor ** 2 == pytest.approx(1.5)
    plain = tiny_config(rope_scaling=LONGROPE, max_position_embeddings=16)
    arrays = random_arrays(parse_config(config))
    grown = {n: a * np.float32(math.sqrt(1.5)) if "q_proj" in n or "k_proj" in n else a for n, a in arrays.items()}
    np.testing.assert_allclose(
        ReferenceSession(memory_checkpoint(config, arrays)).logits(TOKENS[:16]),
        ReferenceSession(memory_checkpoint(plain, grown)).logits(TOKENS[:16]),
        atol=1e-5,
    )


def test_it_opens_artifacts_from_disk(tiny_checkpoint):
    with RUNTIME.open(tiny_checkpoint) as session:
        assert session.logits([1, 2, 3]).shape == (3, 300)
