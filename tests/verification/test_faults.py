"""What is plainly wrong fails, in the step that is meant for it, though every file is what its manifest says.

Here the exporter itself was fed a faulty model, so that the artifact agrees with everything in itself: only the golden
file knows better. The model is quantized to 8 bits, where the faults hide least in noise and were overlooked longest,
and to 2 bits, where they hide best.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.models.checkpoint import Checkpoint
from quantkit.pipeline.options import QuantizeOptions
from quantkit.pipeline.quantization import Quantization
from quantkit.protocols import ExportOptions
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.verification.golden import Golden, read_golden
from quantkit.verification.proof import verify
from tests.support.wrong_models import swapped_heads, with_config, with_weights

ATTENTION = "model.layers.2.self_attn."
HALF = "model.layers.1."


def zeroed(w: np.ndarray) -> np.ndarray:
    return np.zeros_like(w)


def rope(model: Checkpoint, **changes: object) -> Checkpoint:
    return with_config(model, rope_scaling={**model.config["rope_scaling"], **changes})


def with_one_end(model: Checkpoint) -> Checkpoint:
    """No file of the model names its second end token any more."""
    shorter = with_config(model, eos_token_id=2)
    return replace(shorter, files={**shorter.files, "generation_config.json": lambda: b'{"eos_token_id": 2}'})


FAULTS: dict[str, tuple[str, Callable[[Checkpoint], Checkpoint]]] = {
    "attention of a layer zeroed": (
        "numbers",
        lambda m: with_weights(m, {f"{ATTENTION}{x}_proj.weight": zeroed for x in "qkvo"}),
    ),
    "o of a layer zeroed": ("numbers", lambda m: with_weights(m, {f"{ATTENTION}o_proj.weight": zeroed})),
    "two query heads swapped": (
        "numbers",
        lambda m: with_weights(m, {f"{ATTENTION}q_proj.weight": swapped_heads(64)}),
    ),
    "a norm scaled": ("numbers", lambda m: with_weights(m, {f"{HALF}input_layernorm.weight": lambda w: w * 1.02})),
    "final norm of another": ("numbers", lambda m: with_weights(m, {"model.norm.weight": lambda w: w[::-1]})),
    "embedding rows exchanged": (
        "numbers",
        lambda m: with_weights(m, {"model.embed_tokens.weight": swapped_heads(1)}),
    ),
    "gate for up": (
        "numbers",
        lambda m: with_weights(
            m, {f"{HALF}mlp.gate_proj.weight": lambda _: m.weights[f"{HALF}mlp.up_proj.weight"].read().astype("f4")}
        ),
    ),
    "a layer's down transposed in halves": (
        "numbers",
        lambda m: with_weights(m, {f"{HALF}mlp.down_proj.weight": lambda w: np.roll(w, 512, axis=1)}),
    ),
    "rope_theta doubled": ("identity", lambda m: with_config(m, rope_theta=20000.0)),
    "rope factors dropped": ("identity", lambda m: with_config(m, rope_scaling=None)),
    "long factors changed": ("identity", lambda m: rope(m, long_factor=[1.0] * 32)),
    "original context halved": ("identity", lambda m: rope(m, original_max_position_embeddings=512)),
    "scale_emb 11": ("identity", lambda m: with_config(m, scale_emb=11)),
    "scale_depth 1.5": ("identity", lambda m: with_config(m, scale_depth=1.5)),
    "dim_model_base 66": ("identity", lambda m: with_config(m, dim_model_base=66)),
    "rms_norm_eps x 100": ("identity", lambda m: with_config(m, rms_norm_eps=1e-3)),
    "another eos": ("identity", lambda m: with_config(m, eos_token_id=[2, 2041])),
    "one eos lost": ("identity", with_one_end),
    "another bos": ("identity", lambda m: with_config(m, bos_token_id=3)),
    "a longer context": ("identity", lambda m: with_config(m, max_position_embeddings=2048)),
}
FORMS = {
    "int8 folder": (8, "compressed-tensors", "native"),
    "int2 folder": (2, "compressed-tensors", "native"),
    "q8_0": (0, "gguf:q8_0", "native"),
    "q2_k": (0, "gguf:q2_k", "native"),
    "f16 folded": (0, "gguf:f16", "llama"),
    "int4 folded": (4, "gguf:q4_0", "llama"),
}


@pytest.fixture(scope="module")
def golden(golden_model: Path) -> Golden:
    return read_golden(golden_model.parent / "golden.bin")


def made(model: Checkpoint, form: str, out: Path) -> Path:
    bits, container, arch = FORMS[form]
    name, _, kind = container.partition(":")
    report = None
    if bits:
        run = Quantization(model, QuantizeOptions(method="rtn", scheme=AffineGroups(bits=bits, group_size=128)))
        model, report = run.checkpoint, run.report
    planned = registry.exporter(name).prepare(model, ExportOptions(type=kind or None, arch=arch))
    return publish(planned, out, report=report).path


@pytest.mark.parametrize("form", FORMS)
def test_what_is_right_passes(golden_model: Path, golden: Golden, tmp_path: Path, form: str) -> None:
    artifact = made(registry.open_checkpoint(golden_model), form, tmp_path / "out")
    report = verify(artifact, golden=golden, engine="none")
    assert report.passed, report.lines()
    assert report.verdict == "files and numbers verified, not run in any engine"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_fails_in_its_step(
    golden_model: Path, golden: Golden, tmp_path: Path, fault: str, form: str
) -> None:
    step, change = FAULTS[fault]
    artifact = made(change(registry.open_checkpoint(golden_model)), form, tmp_path / "out")
    report = verify(artifact, golden=golden, engine="none")
    assert report.failed is not None, report.lines()
    folding_hides_it = form.endswith("folded") and fault in ("scale_emb 11", "dim_model_base 66")
    assert report.failed.name == ("numbers" if folding_hides_it else step), report.lines()
