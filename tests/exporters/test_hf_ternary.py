"""Dense folders of quantized weights: ternary ones come back bit for bit, and what rounding changes is told."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.cli.app import main
from quantkit.models.checkpoint import Checkpoint
from quantkit.protocols import ExportOptions
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.schemes.affine_groups import AffineGroups
from tests.support.memory import memory_checkpoint
from tests.support.quantized_models import linears, quantized_model
from tests.support.tiny import tiny_config

HF = registry.exporter("hf")


def exported(checkpoint: Checkpoint, out: Path) -> Path:
    publish(HF.prepare(checkpoint, ExportOptions(type="bf16")), out)
    return out


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """As the `safetensors` package reads them."""
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def ternary(scale_dtype: str) -> Checkpoint:
    """A tiny model whose linear weights are -s, 0 and s, groups of 32; scales of which bfloat16 holds each, or few."""
    grid = AffineGroups(bits=2, group_size=32, ternary=True, scale_dtype=scale_dtype)
    config = tiny_config(hidden=64, intermediate=96, heads=2, kv_heads=1, vocab=32)
    return quantized_model(config, linears(grid))


def test_a_ternary_checkpoint_in_bfloat16_comes_back_bit_for_bit(tmp_path: Path) -> None:
    """BitCPM's release form: what was read as codes and bfloat16 scales is written as the very bits that were there."""
    release = exported(ternary("bfloat16"), tmp_path / "release")  # values that only happen to be ternary
    assert all(tensor.dtype == torch.bfloat16 for tensor in weights_of(release).values())
    source = HF.read(release)
    arrays: dict[str, np.ndarray | QuantizedTensor] = {}
    for name, weight in source.weights.items():
        values = weight.read()
        assert isinstance(values, np.ndarray)
        linear = name.endswith("_proj.weight")
        arrays[name] = ternary_codes(values) if linear else values
    model = memory_checkpoint(source.config, arrays)
    planned = HF.prepare(model, ExportOptions(type="bf16"))
    publish(planned, tmp_path / "out")
    assert planned.figures() == {}
    before, after = weights_of(release), weights_of(tmp_path / "out")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name] + 0.0, tensor + 0.0), name  # -0 + 0 = 0
        assert torch.equal((after[name] + 0.0).view(torch.int16), (tensor + 0.0).view(torch.int16)), name


def ternary_codes(values: np.ndarray) -> QuantizedTensor:
    """Bfloat16 values (rows, cols) that are -s, 0 or s in groups of 32, as codes and scales."""
    rows, cols = values.shape
    groups = values.astype(np.float32).reshape(rows, -1, 32)
    scale = np.abs(groups).max(axis=-1)
    signs = np.sign(groups).astype(np.int8)
    assert np.array_equal(signs * scale[:, :, None], groups)
    return QuantizedTensor(
        AffineGroups(bits=2, group_size=32, ternary=True, scale_dtype="bfloat16"),
        (signs + 1).astype(np.uint8).reshape(rows, cols),
        {"scale": scale.astype(ml_dtypes.bfloat16), "zero": np.ones(scale.shape, np.uint8)},
    )


@pytest.mark.parametrize(
    ("scale_dtype", "type_name", "exact"),
    [("bfloat16", "bf16", True), ("float16", "f16", True), ("float16", "f32", True), ("float16", "bf16", False)],
)
def test_what_rounding_changes_of_a_quantized_weight_is_told(
    scale_dtype: str, type_name: str, exact: bool, tmp_path: Path
) -> None:
    planned = HF.prepare(ternary(scale_dtype), ExportOptions(type=type_name))
    figures = publish(planned, tmp_path / "out").manifest["figures"]
    if exact:
        assert figures == {}
        return
    rounded = figures["largest_rounding"]
    assert len(rounded) == 14
    assert all(2.0**-12 < share <= 2.0**-8 for share in rounded.values())


def test_the_command_line_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ct = registry.exporter("compressed-tensors")
    publish(ct.prepare(ternary("float16"), ExportOptions()), tmp_path / "run")
    for kind, told in (("bf16", True), ("f32", False)):
        command = ["export", "hf", str(tmp_path / "run"), "--type", kind, "--out", str(tmp_path / kind)]
        assert main(command) == 0
        line = " ".join(capsys.readouterr().err.split())
        assert ("14 quantized weights are rounded to bf16, a value by at most 0.00" in line) is told, line
