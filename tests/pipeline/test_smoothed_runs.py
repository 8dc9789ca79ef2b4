"""Whole runs with smoothing: the model that comes out, its report, and every container of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.folding import folded
from quantkit.models.loading import load_model
from quantkit.models.recognition import parse_config
from quantkit.models.spec import Role
from quantkit.pipeline.recipe import Recipe
from quantkit.protocols import ExportOptions
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView, TensorView
from tests.support.divergence import divergence
from tests.support.memory import tiny_config
from tests.support.outliers import SEQUENCES, outlier_model, token_samples
from tests.support.runs import quantized, read_through

BF16, F16, F32 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16), np.dtype(np.float32)
INT4, INT8 = AffineGroups(bits=4, group_size=32), AffineGroups(bits=8, group_size=32)
SPEC = parse_config(tiny_config())
READERS = SPEC.readers


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
