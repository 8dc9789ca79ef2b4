"""Dense weights that are ternary as they stand: exact blocks with the bytes of ggml, or a refusal by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from quantkit.errors import NonFiniteValues, UnsupportedSpec
from quantkit.exporters.gguf import blocks
from quantkit.exporters.gguf.blocks import BlockType
from quantkit.exporters.gguf.container.file import read_gguf
from quantkit.exporters.gguf.ternary import AS_THEY_STAND, ternary_blocks
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.recognition import parse_config
from quantkit.models.spec import LINEAR_ROLES
from quantkit.protocols import ExportOptions
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView, TensorView
from tests.support import ggml
from tests.support.gguf_models import BF16, EXPORTER, UP_PROJ, WIDE, theirs, write
from tests.support.memory import memory_checkpoint, random_arrays

by_type = pytest.mark.parametrize("block", AS_THEY_STAND, ids=lambda block: block.name)
by_dtype = pytest.mark.parametrize("dtype", [BF16, np.float16, np.float32], ids=["bf16", "f16", "f32"])


def view_of(values: np.ndarray) -> TensorView:
    return TensorView("model.w.weight", values.dtype, values.shape, lambda start, stop: values[start:stop])


def packed(block: BlockType, values: np.ndarray) -> np.ndarray:
    return ternary_blocks(view_of(values), block, values)


def rows_of(scales: np.ndarray, dtype: Any, cols: int = 1024) -> np.ndarray:
    """Rows of -s, 0 and s, zeros of both signs among them; some of one sign only, some with blocks of zeros."""
    rng = np.random.default_rng(0)
    signs = rng.integers(-1, 2, (len(scales), cols)).astype(np.float32)
    signs[0], signs[1] = np.abs(signs[0]), -np.abs(signs[1])
    signs[2], signs[3, :512] = 0, -0.0
    return (signs * scales[:, None].astype(np.float32)).astype(dtype)


SCALES = {
    "usual": np.linspace(0.01, 0.3, 24).astype(BF16).astype(np.float64),
    "below float16's normal range": 2.0 ** np.linspace(-24, -15, 24).round(),
    "as large as float16 goes": np.full(24, 65280.0),
}


@by_type
@by_dtype
@pytest.mark.parametrize("scales", SCALES.values(), ids=SCALES)
def test_ternary_values_are_exact(block: BlockType, dtype: Any, scales: np.ndarray) -> None:
    values = rows_of(scales, dtype)
    assert np.signbit(values.astype(np.float32)[values == 0]).any()
    raw = packed(block, values)
    assert np.array_equal(blocks.dequantize(block, raw), values.astype(np.float32))


@pytest.mark.engine("llama-cpp")
@by_type
@pytest.mark.parametrize("scales", SCALES.values(), ids=SCALES)
def test_the_bytes_are_those_of_ggml(block: BlockType, scales: np.ndarray) -> None:
    values = rows_of(scales, BF16)
    raw = packed(block, values)
    assert np.array_equal(raw, ggml.quantized(block, values))
    assert np.array_equal(ggml.dequantized(block, raw), values.astype(np.float32))


@by_type
def test_a_scale_may_change_from_block_to_block_but_not_inside(block: BlockType) -> None:
    values = rows_of(SCALES["usual"], np.float32)
    values[5, block.elements :] *= 2
    assert np.array_equal(blocks.dequantize(block, packed(block, values)), values)
    values[5, : block.elements // 2] *= 4
    with pytest.raises(UnsupportedSpec, match="not 0 or plus or minus one magnitude"):
        packed(block, values)


@by_type
@by_dtype
def test_ordinary_weights_are_refused_with_their_share(block: BlockType, dtype: Any) -> None:
    values = np.random.default_rng(0).standard_normal((64, 1024)).astype(dtype)
    with pytest.raises(UnsupportedSpec, match=r"w\.weight: .* 9[89](\.\d)? % of its values are not 0 or plus"):
        packed(block, values)


@by_type
@pytest.mark.parametrize("stray", [0.75, -0.01, float(np.nextafter(np.float32(0.25), np.float32(0)))])
def test_other_values_are_refused_with_their_share(block: BlockType, stray: float) -> None:
    """Of the whole tensor, whose other rows are all right; by the commonest magnitude, so that one stray is one."""
    values = np.zeros((2048, 1024), np.float32)
    values[:, :5] = [0.25, -0.25, 0.25, -0.0, 0.25]
    values[2047, :] = values[2047, 0]
    values[2047, 700] = stray
    message = rf"^model\.w\.weight: gguf holds dense weights as {block.name.lower()} only where they are ternary .*; "
    with pytest.raises(UnsupportedSpec, match=message + r"4.77e-05 % of its values are not 0 or") as refusal:
        ternary_blocks(view_of(values), block, values[-1:])
    assert "quantkit quantize --method ternary" in str(refusal.value.hint)


@by_type
@pytest.mark.parametrize("scale", [1 + 2.0**-12, 70000.0, 2.0**-26], ids=["between two", "beyond", "below"])
def test_a_magnitude_that_float16_does_not_hold_is_refused(block: BlockType, scale: float) -> None:
    values = np.full((3, 1024), 0.25, np.float32)
    values[2, 512:] = -np.float32(scale)
    with pytest.raises(
        UnsupportedSpec, match=rf"{block.name.lower()} holds float16 scales, and the magnitude"
    ) as refusal:
        packed(block, values)
    assert f"{np.float32(scale):g} is none" in str(refusal.value)


@by_type
@by_dtype
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_name(block: BlockType, dtype: Any, bad: float) -> None:
    values = rows_of(SCALES["usual"], dtype)
    values[7, 300] = bad
    with pytest.raises(NonFiniteValues, match=r"model\.w\.weight"):
        packed(block, values)
    values[7] = bad  # nothing else in its blocks
    with pytest.raises(NonFiniteValues, match=r"model\.w\.weight"):
        packed(block, values)


# ------------------------------------------------------------------------------------------------------ whole models


def fake_quantized(config: Mapping[str, Any] = WIDE, files: Mapping[str, bytes] | None = None) -> Checkpoint:
    """A bfloat16 model whose layers are ternary by row, as BitCPM's are."""
    spec = parse_config(config)
    arrays = random_arrays(spec, dtype=BF16)
    for slot in spec.slots():
        if slot.role in LINEAR_ROLES:
            wide = arrays[slot.name].astype(np.float32)
            scale = np.abs(wide).mean(axis=1, keepdims=True).astype(ml_dtypes.bfloat16).astype(np.float32)
            arrays[slot.name] = (np.clip(np.rint(wide / scale), -1, 1) * scale).astype(BF16)
    return memory_checkpoint(config, arrays, files=files)


@by_type
@pytest.mark.parametrize("arch", ["native", "llama"])
def test_a_fake_quantized_model_is_read_back_as_it_was(block: BlockType, arch: str, tmp_path: Path) -> None:
    source = fake_quantized()
    path = write(source, tmp_path / "m.gguf", block.name.lower(), arch)
    tensors = read_gguf(path).tensors
    assert tensors["blk.0.ffn_up.weight"].type is block
    assert tensors["token_embd.weight"].type is blocks.Q8_0
    back = EXPORTER.read(path)
    for name, view in back.weights.items():
        if ".layers." in name and len(view.shape) == 2:
            assert isinstance(view, QuantizedView)
            assert view.scheme == AffineGroups(bits=2, group_size=block.elements, ternary=block.ternary)
            exact = source.weights[name].read()
            found = view.read().dequantized()
            ratio = found[exact != 0] / exact[exact != 0].astype(np.float32)  # folding scales whole matrices
            assert len(np.unique(ratio)) == 1
            assert arch == "llama" or ratio[0] == 1
            assert not found[exact == 0].any()
    if block is not blocks.Q2_0:
        _, other = theirs(path)
        assert np.array_equal(other["blk.0.ffn_up.weight"], back.weights[UP_PROJ].read().dequantized())  # type: ignore[union-attr]


@by_type
def test_a_model_that_is_not_ternary_leaves_nothing_behind(block: BlockType, tmp_path: Path) -> None:
    source = fake_quantized()
    view = source.weights[UP_PROJ]
    assert isinstance(view, TensorView)
    values = view.read().copy()
    values[400, 17] = 3.0
    spoilt = replace(source, weights={**source.weights, UP_PROJ: replace(view, fetch=lambda a, b: values[a:b])})
    planned = EXPORTER.prepare(spoilt, ExportOptions(type=block.name.lower()))
    assert any("taken as they stand: each must be ternary" in note for note in planned.notes)
    with pytest.raises(UnsupportedSpec, match=UP_PROJ) as refusal:
        write(spoilt, tmp_path / "m.gguf", block.name.lower())
    assert "0.000191 % of its values" in str(refusal.value)  # one of 524,288
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "intermediate", "hint"),
    [("tq2_0", 576, "q2_0 or f16"), ("tq1_0", 96, "type f16"), ("q2_0", 96, "type f16")],
)
def test_rows_that_are_not_whole_blocks_are_refused_before_any_work(kind: str, intermediate: int, hint: str) -> None:
    """They could only be f16 there, and a file of another type than was asked for."""
    narrow = fake_quantized({**WIDE, "intermediate_size": intermediate})
    with pytest.raises(UnsupportedSpec, match=rf"down_proj.*rows of {intermediate} are not whole blocks") as refusal:
        EXPORTER.prepare(narrow, ExportOptions(type=kind))
    assert hint in str(refusal.value.hint)
