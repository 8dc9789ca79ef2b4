"""What llama.cpp computes with GGUF files of ours, against the torch model over the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit import registry
from quantkit.models.checkpoint import Checkpoint
from quantkit.tensors.schemes.affine_groups import AffineGroups
from tests.support.gguf_models import CONFIG, EXPORTER, LLAMA, dense, quantized, write

PROMPTS = [[1], [1, 300, 400, 2041, 77], [1, *range(100, 300, 3)]]

# Largest difference of log-probs to the weights that were written, in exact arithmetic, and some room: float32
# kernels differ by 1e-6; the others round activations to the weights' dtype, or to eight bits in blocks of 32.
TOLERANCES = {
    "f32": 2e-5,
    "f16": 5e-3,
    "bf16": 2e-2,
    "q8_0": 6e-2,
    "q4_0": 6e-2,
    "q4_1": 6e-2,
    "q5_0": 6e-2,
    "q5_1": 6e-2,
}


def expected_log_probs(checkpoint: Checkpoint) -> np.ndarray:
    """The torch model in float32 over the same weights."""
    torch = pytest.importorskip("torch")
    from quantkit.models.loading import load_model  # noqa: PLC0415 - needs torch

    model = load_model(checkpoint)
    rows = [model(torch.tensor([prompt]))[0, -1].double() for prompt in PROMPTS]
    return np.stack([torch.log_softmax(row, -1).numpy() for row in rows])


def engine_log_probs(path: Path) -> np.ndarray:
    with registry.runtime("llama-cpp").open(path) as session:
        rows = np.stack([session.next_logits(prompt) for prompt in PROMPTS]).astype(np.float64)
    return rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))


@pytest.mark.engine("llama-cpp")
@pytest.mark.parametrize("arch", ["native", "llama"])
@pytest.mark.parametrize("kind", EXPORTER.types)
def test_llama_cpp_computes_the_model(kind: str, arch: str, tmp_path: Path, tokenizer_files: dict[str, bytes]) -> None:
    source = dense(files=tokenizer_files)
    path = write(source, tmp_path / "m.gguf", kind, arch)
    found = engine_log_probs(path)
    assert np.abs(found - expected_log_probs(EXPORTER.read(path))).max() <= TOLERANCES[kind]
    if kind == "f32":
        assert np.abs(found - expected_log_probs(source)).max() <= TOLERANCES[kind]


@pytest.mark.engine("llama-cpp")
@pytest.mark.parametrize(
    "spec",
    [AffineGroups(bits=4, group_size=128), AffineGroups(bits=4, group_size=64, symmetric=False)],
    ids=["q4_0", "q4_1"],
)
def test_llama_cpp_computes_with_the_codes_that_were_given(
    spec: AffineGroups, tmp_path: Path, tokenizer_files: dict[str, bytes]
) -> None:
    source = quantized(spec, files=tokenizer_files)
    found = engine_log_probs(write(source, tmp_path / "m.gguf"))
    assert np.abs(found - expected_log_probs(source)).max() <= TOLERANCES["q4_0"]


VARIANTS: dict[str, dict[str, Any]] = {
    "plain RoPE, another base": {"rope_scaling": None, "rope_theta": 50000.0},
    "wide heads": {"head_dim": 64, "rope_scaling": None},
    "untied": {"tie_word_embeddings": False},
    "Llama": {**LLAMA, "tie_word_embeddings": False},
}


@pytest.mark.engine("llama-cpp")
@pytest.mark.parametrize("variant", VARIANTS)
def test_llama_cpp_computes_every_variant_of_the_family(
    variant: str, tmp_path: Path, tokenizer_files: dict[str, bytes]
) -> None:
    source = dense({**CONFIG, **VARIANTS[variant]}, files=tokenizer_files)
    found = engine_log_probs(write(source, tmp_path / "m.gguf", "f32"))
    assert np.abs(found - expected_log_probs(source)).max() <= TOLERANCES["f32"]
