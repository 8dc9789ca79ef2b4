"""Calibrated runs of a model with latent attention, through the ordinary seams: codes, proofs, and what is found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import quantkit
from quantkit.calibration.samples import CalibrationOptions, make_samples
from quantkit.exporters.gguf.container.file import read_gguf
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import Role
from quantkit.pipeline.options import QuantizeOptions
from quantkit.protocols import ExportOptions
from quantkit.tensors.block_options import BlockOptions
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView
from tests.support.latent_definition import SMALL, latent_arrays, write_latent
from tests.support.memory import memory_checkpoint
from tests.support.runs import quantized, read_through
from tests.support.wrong_models import with_weights

INT4 = AffineGroups(bits=4, group_size=32)
IDS = np.random.default_rng(1).integers(3, 97, 48).tolist()


@pytest.fixture(scope="module")
def model() -> Checkpoint:
    return memory_checkpoint(SMALL, latent_arrays(SMALL, seed=1))


def rows(sequences: int = 16) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(3, 97, (sequences, 48)))


def logits(checkpoint: Checkpoint) -> np.ndarray:
    from quantkit.runtimes.reference.session import ReferenceSession  # noqa: PLC0415

    return ReferenceSession(checkpoint).logits(IDS)


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq", "ternary"])
def test_every_method_quantizes_its_layers(model: Checkpoint, method: str) -> None:
    pytest.importorskip("torch")
    scheme = AffineGroups(bits=2, group_size=-1, ternary=True) if method == "ternary" else INT4
    run = quantized(model, scheme, method, calibration=make_samples(rows(), source="random", digest=""))
    packed = [view.name for view in run.checkpoint.weights.values() if isinstance(view, QuantizedView)]
    assert len(packed) == 8 * 2
    assert np.isfinite(logits(run.checkpoint)).all()


def test_calibration_beats_rounding_on_every_group_of_layers(model: Checkpoint) -> None:
    """On inputs of few directions, which statistics of the wrong inputs would not know."""
    pytest.importorskip("torch")
    samples = make_samples([np.resize(row[:6], 48) for row in rows(24)], source="random", digest="")
    run = quantized(model, INT4, "gptq", calibration=samples)
    read_through(run)
    for role in (Role.Q_A, Role.KV_A, Role.Q_B, Role.KV_B, Role.O, Role.GATE, Role.DOWN):
        told = [run.report()["tensors"][model.spec.weight_name(layer, role)] for layer in range(2)]
        assert all(report["fallback"] is None for report in told), role
        assert sum(report["error"] for report in told) < 0.9 * sum(report["error_of_rounding"] for report in told), role


def test_norms_of_latents_are_smoothed_for_what_reads_them(model: Checkpoint) -> None:
    pytest.importorskip("torch")
    spread = np.random.default_rng(2).lognormal(0, 1.5, 64).astype(np.float32)
    both = ("q_a_layernorm", "kv_a_layernorm")
    names = [f"model.layers.{layer}.self_attn.{name}.weight" for layer in range(2) for name in both]
    skewed = with_weights(model, dict.fromkeys(names, lambda w: w * spread))
    run = quantized(skewed, INT4, "awq", calibration=make_samples(rows(), source="random", digest=""))
    before, after = (np.stack([one.weights[name].read() for name in names]) for one in (skewed, run.checkpoint))
    assert (before != after).any(axis=1).all()


def test_llama_cpps_types_are_calibrated(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    source = write_latent(tmp_path / "m", {**SMALL, "hidden_size": 256, "num_hidden_layers": 1})
    options = ExportOptions(type="q4_k_m", blocks=BlockOptions(algorithm="calibrated"))
    few = QuantizeOptions(calibration=CalibrationOptions(sequences=6, length=48))
    quantkit.export_calibrated("gguf", source, tmp_path / "m.gguf", options, few)
    assert quantkit.verify(tmp_path / "m.gguf", against=source, engine="reference", prompts=3).passed
    kinds = {info.type.name for info in read_gguf(tmp_path / "m.gguf").tensors.values()}
    assert {"Q4_K", "Q6_K", "Q5_0"} <= kinds, "rows of the latents are no whole blocks of 256"
