"""Smoothing: the same function before and after, what may be smoothed, and what it is good for."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.calibration.activations import HiddenStates, Inputs
from quantkit.cli.app import main
from quantkit.errors import BadOption
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.folding import folded
from quantkit.models.loading import load_block, load_model
from quantkit.models.spec import NORM_ROLES, Role, parse_config
from quantkit.models.torch_model import Block, rotary_tables
from quantkit.pipeline.quantization import Quantization
from quantkit.pipeline.recipe import Recipe
from quantkit.protocols import ExportOptions, InputScales, Layer, Readers
from quantkit.solver.smoothing import LOWEST_NORMAL, folded_norm, smooth, smoothable, spread
from quantkit.solver.smoothing_search import chosen_scales
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView, TensorView
from tests.support.memory import memory_checkpoint, tiny_config
from tests.support.outliers import outlier_arrays, outlier_model, token_samples
from tests.support.runs import quantized

BF16, F16, F32 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16), np.dtype(np.float32)
INT4, INT8 = AffineGroups(bits=4, group_size=32), AffineGroups(bits=8, group_size=32)
SPEC = parse_config(tiny_config())
READERS = SPEC.readers
EVERYTHING = (Role.ATTN_NORM, Role.V, Role.MLP_NORM, Role.UP)
SEQUENCES = token_samples(*[40] * 16)

# --------------------------------------------------------------------------------------------------------- the algebra


def random_scales(block: Block, seed: int = 0) -> dict[Role, np.ndarray]:
    """Scales between 1/20 and 20 for everything that can be divided."""
    rng = np.random.default_rng(seed)
    sizes = {
        Role.ATTN_NORM: block.input_layernorm.weight.shape[0],
        Role.V: block.self_attn.v_proj.weight.shape[0],
        Role.MLP_NORM: block.post_attention_layernorm.weight.shape[0],
        Role.UP: block.mlp.up_proj.weight.shape[0],
    }
    return {role: np.exp(rng.uniform(-3, 3, size)).astype(np.float32) for role, size in sizes.items()}


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


# ---------------------------------------------------------------------------------------------------- what is smoothed


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


# ---------------------------------------------------------------------------------------------------------- the choice


def chosen(
    source: Checkpoint, before: Role, *, scheme: AffineGroups = INT4, **changed: list[torch.Tensor]
) -> InputScales:
    """The choice for block 0, on SEQUENCES."""
    block = load_block(source, 0)
    inputs = next(
        x for x in HiddenStates(source, SEQUENCES, skip_positions=4).inputs(block) if x.roles == READERS[before]
    )
    weight = source.weights[SPEC.weight_name(0, before)]
    assert isinstance(weight, TensorView)
    layers = (Layer(role, block.weight(role).detach().numpy(), scheme) for role in inputs.roles)
    readers = Readers(
        layers=tuple(layers),
        fitted=inputs.fitted,
        held_out=inputs.held_out,
        feeding=block.weight(before),
        feeding_scheme=None if before in NORM_ROLES else scheme,
        feeding_dtype=weight.dtype,
        head_dim=source.spec.head_dim,
    )
    return chosen_scales(replace(readers, **changed))


@pytest.mark.parametrize("before", EVERYTHING)
def test_scales_are_powers_of_the_mean_inputs_normalised_as_in_the_paper(before: Role) -> None:
    source = outlier_model()
    choice = chosen(source, before)
    assert 0 < choice.exponent < 1
    inputs = next(
        x
        for x in HiddenStates(source, SEQUENCES, skip_positions=4).inputs(load_block(source, 0))
        if x.roles == READERS[before]
    )
    m = torch.cat(inputs.fitted).abs().mean(0).double().numpy()
    if before is Role.V:  # heads 0, 1 read the first head of v, 2 and 3 the second
        m = m.reshape(2, 2, 16).mean(1).reshape(-1)
    power = m**choice.exponent
    assert choice.scale == pytest.approx(power / np.sqrt(power.max() * power.min()), rel=1e-5)


def test_a_gain_that_does_not_carry_over_to_held_out_sequences_is_not_taken() -> None:
    source = outlier_model()
    fitted, held_out = (
        [torch.from_numpy(np.random.default_rng(seed).standard_normal((200, 64))).float() for _ in range(4)]
        for seed in (1, 2)
    )
    large, elsewhere = torch.ones(64), torch.ones(64)
    large[::16], elsewhere[8::16] = 5, 100
    same, other = [x * large for x in held_out], [x * elsewhere for x in held_out]
    fitted = [x * large for x in fitted]
    assert chosen(source, Role.MLP_NORM, fitted=fitted, held_out=same).exponent > 0
    assert chosen(source, Role.MLP_NORM, fitted=fitted, held_out=other).scale is None
    assert chosen(source, Role.MLP_NORM, fitted=fitted, held_out=[]).exponent == 0, "nothing to judge by"


def test_inputs_of_no_use_are_not_smoothed_by() -> None:
    source = outlier_model()
    for value in (np.nan, np.inf, 0.0):
        useless = [torch.full((9, source.spec.hidden_size), value)]
        found = chosen(source, Role.ATTN_NORM, fitted=useless)
        assert (found.exponent, found.scale) == (0, None)


def test_dead_channels_keep_scale_one() -> None:
    arrays = outlier_arrays(tiny_config(num_hidden_layers=1))
    arrays["model.layers.0.input_layernorm.weight"][[3, 60]] = 0
    source = memory_checkpoint(tiny_config(num_hidden_layers=1), arrays)
    choice = chosen(source, Role.ATTN_NORM)
    assert choice.scale is not None
    assert choice.scale[[3, 60]].tolist() == [1, 1]
    found = read_through(quantized(source, INT4, "awq", calibration=SEQUENCES))
    assert divergence(source, found) < 0.1


@pytest.mark.parametrize("magnitude", [1e-4, 1e-7, 3e4])
def test_rows_are_not_divided_beyond_the_range_of_their_scales(magnitude: float) -> None:
    """float16 is exact from 6e-5 on and ends at 65504."""
    arrays = outlier_arrays(tiny_config(num_hidden_layers=1))
    for name, factor in (("up_proj", magnitude), ("down_proj", 1 / magnitude)):
        arrays[f"model.layers.0.mlp.{name}.weight"] *= np.float32(factor)
    choice = chosen(memory_checkpoint(tiny_config(num_hidden_layers=1), arrays), Role.UP)
    if choice.scale is None:
        return
    covering = np.abs(arrays["model.layers.0.mlp.up_proj.weight"].reshape(96, 2, 32)).max(-1) * 2 / 15
    divided = covering / choice.scale[:, None]
    assert ((divided >= 2.0**-12) | (divided >= covering * 0.999)).all()
    assert ((divided <= 65504) | (divided <= covering * 1.001)).all()


# ------------------------------------------------------------------------------------------------------------ the runs


def read_through(run: Quantization) -> Checkpoint:
    """The run's result, read once in the order of the model."""
    made: dict[str, QuantizedView | TensorView] = {}
    for name, view in run.checkpoint.weights.items():
        if isinstance(view, QuantizedView):
            tensor = view.read()
            made[name] = replace(view, read=lambda tensor=tensor: tensor)
        else:
            array = view.read()
            made[name] = replace(view, fetch=lambda start, stop, array=array: array[start:stop])
    return replace(run.checkpoint, weights=made)


def log_probabilities(checkpoint: Checkpoint) -> torch.Tensor:
    ids = np.random.default_rng(77).integers(0, checkpoint.spec.vocab_size, (8, 50))
    return torch.log_softmax(load_model(checkpoint)(torch.from_numpy(ids)).double(), -1)


def divergence(original: Checkpoint, changed: Checkpoint) -> float:
    """Mean KL on text that calibration has not seen."""
    p, q = log_probabilities(original), log_probabilities(changed)
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("arch", ["native", "llama"])
@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_at_eight_bits_the_smoothed_model_is_the_original(method: str, dtype: np.dtype, arch: str) -> None:
    source = outlier_model(dtype=dtype)
    source = folded(source) if arch == "llama" else source
    plain, smoothed = (
        quantized(source, INT8, method, calibration=SEQUENCES, smooth=choice, propagate=False)
        for choice in (False, True)
    )
    made, found = read_through(plain), read_through(smoothed)
    changed = [
        name
        for name, view in found.weights.items()
        if "layernorm" in name and (view.read() != made.weights[name].read()).any()
    ]
    assert changed, "nothing was smoothed"
    for name, view in found.weights.items():
        assert view.shape == source.weights[name].shape
        if isinstance(view, TensorView):
            assert view.dtype == view.read().dtype == source.weights[name].dtype
    assert divergence(source, found) < 1.5 * divergence(source, made) < 1e-3


def test_activation_aware_scaling_beats_rounding_and_an_unscaled_search() -> None:
    gains = []
    for seed in range(4):
        source = outlier_model(seed=seed)
        kl = {
            label: divergence(
                source, read_through(quantized(source, INT4, method, calibration=SEQUENCES, smooth=smooth))
            )
            for label, method, smooth in (("rtn", "rtn", None), ("search", "awq", False), ("awq", "awq", None))
        }
        assert kl["awq"] < 0.7 * kl["rtn"]
        gains.append(np.log(kl["awq"] / kl["search"]))
    assert np.mean(gains) < -0.05


def test_the_report_tells_every_stage_s_exponent() -> None:
    recipe = Recipe.from_json({"rule": [{"role": "gate", "keep": True}]})
    run = quantized(outlier_model(), INT4, "gptq", recipe=recipe, calibration=SEQUENCES, smooth=True)
    read_through(run)
    tensors = json.loads(json.dumps(run.report()))["tensors"]
    for layer in range(2):
        exponents = {
            role: tensors[SPEC.weight_name(layer, role)]["smoothing"]
            for role in (*READERS[Role.ATTN_NORM], Role.O, Role.DOWN)
        }
        assert all(0 <= exponent < 1 for exponent in exponents.values())
        assert exponents[Role.Q] == exponents[Role.K] == exponents[Role.V]
        assert tensors[SPEC.weight_name(layer, Role.UP)]["smoothing"] is None
    assert any(entry["smoothing"] for entry in tensors.values())


def test_what_a_recipe_keeps_in_16_bits_and_its_norm_stay_as_they_are() -> None:
    source = outlier_model(dtype=BF16)
    recipe = Recipe.from_json({"rule": [{"role": "k", "keep": True}, {"match": "model.layers.1.*", "keep": True}]})
    run = quantized(source, INT4, "awq", recipe=recipe, calibration=SEQUENCES)
    kept = {name for name, view in run.checkpoint.weights.items() if view is source.weights[name]}
    assert set(source.weights) - kept == {
        *(SPEC.weight_name(0, role) for role in (Role.Q, Role.V, Role.O, Role.MLP_NORM, Role.GATE, Role.UP, Role.DOWN))
    }
    assert divergence(source, read_through(run)) < 0.1


def test_a_norm_comes_out_of_the_stream_like_the_weights_behind_it() -> None:
    run = quantized(outlier_model(dtype=BF16), INT4, "awq", calibration=SEQUENCES)
    weights = run.checkpoint.weights
    name = SPEC.weight_name(0, Role.ATTN_NORM)
    view = weights[name]
    assert isinstance(view, TensorView)
    first = view.read()
    assert view.fetch(3, 9).tobytes() == first[3:9].tobytes()
    assert first.tobytes() == view.read().tobytes()
    weights[SPEC.weight_name(1, Role.Q)].read()
    with pytest.raises(RuntimeError, match="blocks are computed once, in order"):
        view.read()


def test_inputs_of_a_block_are_seen_without_moving() -> None:
    source = outlier_model()
    hidden, other = (HiddenStates(source, SEQUENCES, skip_positions=4) for _ in range(2))
    block = load_block(source, 0)
    ahead: list[Inputs] = list(hidden.inputs(block))
    stages = list(other.stages(deepcopy(block), block))
    for inputs, stage in zip(ahead, stages, strict=True):
        assert inputs.roles == stage.roles
        x = torch.cat(inputs.fitted).double()
        rounding = len(x) * 2.0**-24 * (x.abs().T @ x.abs())  # what float32 products may lose at most
        assert ((x.T @ x - stage.fitted.hessian).abs() <= rounding).all()
    hidden.advance(deepcopy(block), block)
    for one, two in zip(hidden.states, other.states, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(("method", "smooth"), [("awq", None), ("gptq", True)])
def test_two_threads_give_the_same_numbers_as_one(method: str, smooth: bool | None) -> None:
    source = outlier_model(dtype=F16, num_hidden_layers=1, hidden_size=128, intermediate_size=544)
    runs = [
        quantized(source, INT4, method, calibration=token_samples(*[33] * 9), smooth=smooth, threads=threads)
        for threads in (1, 2)
    ]
    one, two = (read_through(run) for run in runs)
    assert json.dumps(runs[0].report()) == json.dumps(runs[1].report())
    assert any(entry["smoothing"] for entry in runs[0].report()["tensors"].values())
    for name, view in one.weights.items():
        assert values(view).tobytes() == values(two.weights[name]).tobytes()


def values(view: QuantizedView | TensorView) -> np.ndarray:
    return view.read().dequantized() if isinstance(view, QuantizedView) else view.read()


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_every_container_of_a_smoothed_model_runs_as_its_quantized_weights(method: str, tmp_path: Path) -> None:
    source = outlier_model(
        dtype=BF16,
        vocab_size=2048,
        hidden_size=128,
        intermediate_size=256,
        eos_token_id=[2, 2040],
        max_position_embeddings=64,
    )
    tokenizer = Path(__file__).resolve().parents[2] / "golden" / "model"
    files = {path.name: path.read_bytes() for path in tokenizer.glob("*token*")}
    source = replace(source, files={name: lambda data=data: data for name, data in files.items()})
    spec = AffineGroups(bits=4, group_size=32)
    rows = token_samples(*[40] * 9, vocab=2040)
    made = read_through(quantized(source, spec, method, calibration=rows, smooth=True))
    assert any((values(made.weights[n]) != values(source.weights[n])).any() for n in made.weights if "layernorm" in n)
    publish(registry.exporter("compressed-tensors").prepare(made, ExportOptions()), tmp_path / "int4")
    again = registry.open_checkpoint(tmp_path / "int4")
    ids = [int(x) for x in np.random.default_rng(2).integers(0, 2040, 30)]
    for name, options, out in (
        ("gguf", ExportOptions(type="q4_0"), "int4.gguf"),
        ("hf", ExportOptions(type="f32", arch="llama"), "int4-f32"),
        ("gptq", ExportOptions(), "int4-gptq"),
        ("awq", ExportOptions(), "int4-awq"),
    ):
        publish(registry.exporter(name).prepare(again, options), tmp_path / out)
        back = registry.open_checkpoint(tmp_path / out)
        blocks = (folded(made) if options.arch == "llama" else made).weights
        mine = {weight: view for weight, view in blocks.items() if ".layers." in weight}
        wanted = log_softmax_of(replace(back, weights={**back.weights, **mine}), ids)
        with registry.runtime("reference").open(tmp_path / out) as session:
            found = torch.from_numpy(session.logits(ids)).log_softmax(-1).numpy()
        assert np.abs(found - wanted).max() < 0.01 * np.abs(wanted - log_softmax_of(source, ids)).max(), name


def log_softmax_of(checkpoint: Checkpoint, ids: list[int]) -> np.ndarray:
    return load_model(checkpoint)(torch.tensor([ids]))[0].log_softmax(-1).numpy()
