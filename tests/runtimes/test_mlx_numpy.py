"""MLX's container and arithmetic in numpy: literal bytes, values as mlx has them, and whole models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from quantkit import registry
from quantkit.errors import BadOption
from quantkit.protocols import ExportOptions
from quantkit.runtimes.mlx_numpy.container import Container
from quantkit.tensors.schemes.affine_groups import AffineGroups
from tests.support.memory import memory_checkpoint, tiny_config
from tests.support.mlx_folders import exported
from tests.support.quantized_models import linears, quantized_model

SHAPE = (4, 128)


def container_of(tmp_path: Path, tensors: dict[str, np.ndarray], budget: int = 1 << 20) -> Container:
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, {"format": "mlx"})
    return Container([path], budget)


def test_literal_words(tmp_path: Path) -> None:
    """Codes of three bits 0 1 2 ... from the lowest bit on, scale 2, bias -3."""
    codes = [number % 8 for number in range(32)]
    stream = sum(code << (3 * place) for place, code in enumerate(codes))
    words = np.array([[stream >> (32 * word) & 0xFFFFFFFF for word in range(3)]], np.uint32)
    parts = {"a.weight": words, "a.scales": np.full((1, 1), 2, np.float16), "a.biases": np.full((1, 1), -3, np.float16)}
    values = container_of(tmp_path, parts).weight("a.weight", (1, 32))
    assert values.tolist() == [[2.0 * code - 3 for code in codes]]
    assert values.dtype == np.float32


AFFINE = [(bits, group, "affine") for bits in (1, 2, 3, 4, 5, 6, 8) for group in (32, 128)]


@pytest.mark.parametrize(("bits", "group", "mode"), [*AFFINE, (4, 32, "mxfp4"), (4, 16, "nvfp4")])
def test_values_are_those_of_mlx(bits: int, group: int, mode: str, tmp_path: Path) -> None:
    mx: Any = pytest.importorskip("mlx.core")
    weight = mx.array(np.random.default_rng(bits).normal(size=SHAPE).astype(np.float32))
    how = {"group_size": group, "bits": bits, "mode": mode}
    parts = mx.quantize(weight, **how)
    names = ("a.weight", "a.scales", "a.biases")
    container = container_of(tmp_path, {name: np.array(part) for name, part in zip(names, parts, strict=False)})
    wanted = np.array(mx.dequantize(*parts, **how).astype(mx.float32))
    np.testing.assert_allclose(container.weight("a.weight", SHAPE), wanted, rtol=0, atol=1e-6)


def test_what_does_not_fit_is_computed_at_every_use(tmp_path: Path) -> None:
    dense = np.arange(8, dtype=np.float16).reshape(2, 4)
    kept, anew = (container_of(tmp_path, {"a.weight": dense}, budget) for budget in (32, 31))
    assert kept.weight("a.weight", (2, 4)) is kept.weight("a.weight", (2, 4))
    assert anew.weight("a.weight", (2, 4)) is not anew.weight("a.weight", (2, 4))
    assert np.array_equal(anew.weight("a.weight", (2, 4)), dense)


CONFIG = tiny_config(vocab_size=64, hidden_size=64, intermediate_size=96, max_position_embeddings=2048)
GRID = AffineGroups(bits=4, group_size=32, symmetric=False)


@pytest.mark.parametrize("arch", ["native", "llama"])
def test_long_prompts_run_in_parts_that_add_up(arch: str, tmp_path: Path) -> None:
    """Past the 1024 tokens that are taken at a time; native where the head is its own."""
    model = quantized_model({**CONFIG, "tie_word_embeddings": False}, linears(GRID))
    folder = exported(model, tmp_path / "model", ExportOptions(arch=arch))
    ids = [int(token) for token in np.random.default_rng(0).integers(0, 64, 1100)]
    with registry.runtime("reference").open(folder) as oracle, registry.runtime("mlx-numpy").open(folder) as session:
        wanted, found = oracle.logits(ids), session.logits(ids)
        last = session.next_logits(ids)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
    np.testing.assert_allclose(last, wanted[-1], rtol=0, atol=1e-4 * np.abs(wanted).max())


def test_a_dense_folder_runs_and_ids_are_checked(tmp_path: Path) -> None:
    folder = exported(memory_checkpoint(CONFIG), tmp_path / "model")
    with registry.runtime("mlx-numpy").open(folder) as session:
        assert session.logits([1, 2, 3]).shape == (3, 64)
        for ids in ([], [64], [-1], [0] * 2049):
            with pytest.raises(BadOption):
                session.next_logits(ids)
