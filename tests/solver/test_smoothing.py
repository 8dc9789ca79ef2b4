"""Smoothing: the same function before and after, and what may be smoothed."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

from quantkit import registry
from quantkit.cli.app import main
from quantkit.errors import BadOption
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.loading import load_block
from quantkit.models.spec import NORM_ROLES, Role
from quantkit.models.torch_model import Block, rotary_tables
from quantkit.pipeline.recipe import Recipe
from quantkit.solver.smoothing import LOWEST_NORMAL, folded_norm, smooth, smoothable, spread
from quantkit.tensors.schemes.affine_groups import AffineGroups
from tests.support.memory import memory_checkpoint, tiny_config
from tests.support.outliers import outlier_model
from tests.support.runs import quantized
from tests.support.smoothing import random_scales

BF16, F16, F32 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16), np.dtype(np.float32)
INT4 = AffineGroups(bits=4, group_size=32)
EVERYTHING = (Role.ATTN_NORM, Role.V, Role.MLP_NORM, Role.UP)


def output(block: Block, checkpoint: Checkpoint, seed: int = 1) -> torch.Tensor:
    """What a block makes of random residual states, in float64."""
    x = torch.from_numpy(np.random.default_rng(seed).standard_normal((2, 30, checkpoint.spec.hidden_size)))
    cos, sin = rotary_tables(checkpoint.spec, 0, 30, torch.device("cpu"))
    return deepcopy(block).double()(x, cos, sin)[0] - x


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("dtype", [BF16, F16, F32])
def test_a_smoothed_block_computes_the_same_function(dtype: np.dtype, kv_heads: int) -> None:
    source = outlier_model(dtype=dtype, num_key_value_heads=kv_heads)
    block = load_block(source, 1)
    before, weights = output(block, source), {name: weight.clone() for name, weight in block.named_parameters()}
    smooth(block, random_scales(block), dict.fromkeys(NORM_ROLES, dtype))
    assert relative(output(block, source), before) < 1e-6  # float32 keeps 6e-8
    for name, weight in block.named_parameters():
        assert (weight != weights[name]).float().mean() > 0.5, f"{name} was not touched"


def test_the_comparison_would_see_a_norm_that_was_rounded_without_its_readers_knowing() -> None:
    source = outlier_model(dtype=BF16)
    block = load_block(source, 0)
    before, scale = output(block, source), random_scales(block)[Role.ATTN_NORM]
    smooth(block, {Role.ATTN_NORM: scale}, {Role.ATTN_NORM: F32})
    block.input_layernorm.weight.copy_(block.input_layernorm.weight.bfloat16().float())
    assert relative(output(block, source), before) > 1e-4


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
def test_a_norm_is_rounded_to_its_dtype_and_the_ratio_is_exact(dtype: np.dtype) -> None:
    rng = np.random.default_rng(0)
    weight = (rng.uniform(0.5, 2, 5000) * rng.choice([-1, 1], 5000)).astype(dtype).astype(np.float32)
    scale = np.exp(rng.uniform(-3, 3, 5000)).astype(np.float32)
    made, ratio = folded_norm(weight, scale, dtype)
    assert made.dtype == dtype
    assert ratio.dtype == F32
    expected = (weight.astype(np.float64) / scale).astype(dtype)
    assert made.tobytes() == expected.tobytes()
    back = made.astype(np.float64) * ratio
    assert np.abs(back / weight - 1).max() < 2.0**-23
    half_a_step = {BF16: 2.0**-8, F16: 2.0**-10, F32: 2.0**-22}[dtype]
    assert np.abs(ratio / scale - 1).max() < half_a_step


@pytest.mark.parametrize(
    ("weight", "scale", "dtype"),
    [
        (1e-3, 100.0, F16),  # 1e-5 would be subnormal
        (1.0, 1e9, F16),  # would be zero
        (1000.0, 1e-2, F16),  # would be infinite
        (1.0, 1e-39, F32),  # would be infinite
        (1e-30, 1e10, BF16),  # would be subnormal
        (0.0, 2.0, BF16),
        (1.0, np.nan, BF16),
        (1.0, np.inf, BF16),
        (1.0, 0.0, BF16),
    ],
)
def test_a_channel_that_its_dtype_cannot_hold_divided_is_left_alone(
    weight: float, scale: float, dtype: np.dtype
) -> None:
    given = np.array([weight, 1.0]).astype(dtype).astype(np.float32)
    made, ratio = folded_norm(given, np.array([scale, 2.0], np.float32), dtype)
    assert made.astype(np.float32).tolist() == [given[0], 0.5]
    assert ratio.tolist() == [1, 2]


def test_the_smallest_normal_number_is_still_used() -> None:
    for dtype, lowest in LOWEST_NORMAL.items():
        assert float(ml_dtypes.finfo(dtype).smallest_normal) == lowest
        made, ratio = folded_norm(np.array([lowest * 4], np.float32), np.array([4.0], np.float32), dtype)
        assert (made.astype(np.float64), ratio) == (lowest, 4)


def test_query_heads_that_share_a_head_of_v_share_its_scales() -> None:
    source = outlier_model(num_attention_heads=4, num_key_value_heads=2)  # heads of 16
    block = load_block(source, 0)
    before = block.self_attn.o_proj.weight.clone()
    scale = np.arange(1, 33, dtype=np.float32)
    smooth(block, {Role.V: scale}, {})
    ratio = (block.self_attn.o_proj.weight / before)[0].numpy().reshape(4, 16)
    for head in range(4):
        assert ratio[head] == pytest.approx(scale.reshape(2, 16)[head // 2])
    assert spread(torch.from_numpy(scale), 32, 16).tolist() == scale.tolist()


def wanted_by(*rules: dict[str, object], method: str = "awq", smooth: bool | None = None) -> set[Role]:
    """What may be divided in block 0 under a recipe."""
    source = memory_checkpoint(tiny_config())
    assignments = Recipe.from_json({"rule": list(rules)}).assign(source.spec, INT4, method)
    wanted = {
        name: (assigned.scheme, registry.method(assigned.method))
        for name, assigned in assignments.items()
        if assigned.scheme is not None
    }
    return set(smoothable(source.spec, wanted, 0, smooth))


def test_a_stage_is_smoothed_only_where_everything_behind_it_can_follow() -> None:
    everything = set(EVERYTHING)
    assert wanted_by() == everything
    assert wanted_by({"role": "k", "keep": True}) == everything - {Role.ATTN_NORM}
    assert wanted_by({"role": "gate", "keep": True}) == everything - {Role.MLP_NORM}
    assert wanted_by({"role": "v", "keep": True}) == everything - {Role.ATTN_NORM, Role.V}
    assert wanted_by({"role": "up", "keep": True}) == everything - {Role.MLP_NORM, Role.UP}
    assert wanted_by({"role": "o", "keep": True}) == everything - {Role.V}
    assert wanted_by({"role": "down", "keep": True}) == everything - {Role.UP}
    assert wanted_by({"match": "model.layers.1.*", "keep": True}) == everything


def test_methods_ask_for_smoothing_and_the_user_decides() -> None:
    everything = set(EVERYTHING)
    assert wanted_by(smooth=False) == set()
    assert wanted_by(method="gptq") == set()
    assert wanted_by(method="gptq", smooth=True) == everything
    assert wanted_by({"role": ["gate", "up"], "method": "gptq"}) == everything - {Role.MLP_NORM}
    assert wanted_by({"role": ["gate", "up"], "method": "gptq"}, smooth=True) == everything
    rounded = {"role": ["q", "up"], "method": "rtn"}
    assert wanted_by(rounded, smooth=True) == everything - {Role.ATTN_NORM, Role.MLP_NORM}
    assert wanted_by(method="rtn") == set()


def test_smoothing_without_calibration_is_refused(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["quantize", str(tiny_checkpoint), "--method", "rtn", "--out", str(tiny_checkpoint.parent / "out")]
    assert main([*options, "--smooth"]) == 2
    assert "rtn is not calibrated" in capsys.readouterr().err
    assert main([*options, "--no-smooth"]) == 0
    with pytest.raises(BadOption, match="rtn is not calibrated") as failure:
        quantized(memory_checkpoint(tiny_config()), INT4, "rtn", smooth=True)
    assert "gptq" in (failure.value.hint or "")
