"""What llama.cpp computes with GGUF files of ours, against the torch model over the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit import registry
from quantkit.exporters.gguf.container.file import read_gguf
from quantkit.models.checkpoint import Checkpoint
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.schemes.affine_groups import AffineGroups
from tests.support.gguf_models import (
    CONFIG,
    EXPORTER,
    LLAMA,
    UP_PROJ,
    WIDE,
    dense,
    quantized,
    random_quantized,
    with_tensor,
    write,
)

PROMPTS = [[1], [1, 300, 400, 2041, 77], [1, *range(100, 300, 3)]]

# Largest difference of log-probs to the weights that were written, in exact arithmetic, and some room: float32
# kernels differ by 1e-6; the others round activations to the weights' dtype, or to eight bits in blocks of 32 or 256.
TOLERANCES = {
    "f32": 2e-5,
    "f16": 5e-3,
    "bf16": 2e-2,
    "q8_0": 6e-2,
    "q4_0": 6e-2,
    "q4_1": 6e-2,
    "q5_0": 6e-2,
    "q5_1": 6e-2,
    "q2_0": 6e-2,
    "tq2_0": 6e-2,
    "tq1_0": 6e-2,
}
ROUNDED = [kind for kind in TOLERANCES if kind not in ("q2_0", "tq2_0", "tq1_0")]
"""Types that any dense weights are rounded to."""
TERNARY = AffineGroups(bits=2, group_size=-1, ternary=True)


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
@pytest.mark.parametrize("kind", ROUNDED)
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


@pytest.mark.engine("llama-cpp")
@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        *((kind, TERNARY) for kind in ("tq2_0", "tq1_0", "q2_0", "q4_0")),
        ("q2_0", AffineGroups(bits=2, group_size=64)),
    ],
    ids=str,
)
def test_llama_cpp_computes_with_codes_of_two_bits(
    kind: str, spec: AffineGroups, tmp_path: Path, tokenizer_files: dict[str, bytes]
) -> None:
    """Rows of queries and keys in pairs, a ternary embedding, scales of both signs.

    The embedding is ternary in any case: a model of which every matrix is negated predicts the same.
    """
    source = quantized(spec, WIDE, files=tokenizer_files)
    for seed, (name, grid) in enumerate({"model.embed_tokens.weight": TERNARY, UP_PROJ: spec}.items()):
        tensor = random_quantized(source.weights[name].shape, grid, seed)
        flipped = tensor.scale * np.where(np.arange(len(tensor.scale)) % 3, 1, -1).astype(np.float16)[:, None]
        source = with_tensor(source, name, QuantizedTensor(grid, tensor.codes, {**tensor.arrays, "scale": flipped}))
    path = write(source, tmp_path / "m.gguf", kind)
    assert {
        read_gguf(path).tensors[name].type.name.lower() for name in ("token_embd.weight", "blk.0.attn_k.weight")
    } == {kind}
    assert np.abs(engine_log_probs(path) - expected_log_probs(source)).max() <= TOLERANCES[kind]


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
