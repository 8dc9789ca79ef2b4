"""Quantized weights in GGUF: which codes and scales a block type carries, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from quantkit.errors import UnsupportedSpec, ValueOutOfRange
from quantkit.exporters.gguf import blocks
from quantkit.exporters.gguf.container.file import read_gguf
from quantkit.models.checkpoint import Checkpoint
from quantkit.protocols import ExportOptions
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.scheme import SCALE_DTYPES
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView
from tests.support.gguf_models import (
    DOWN_PROJ,
    EXPORTER,
    Q_PROJ,
    UP_PROJ,
    WIDE,
    permuted,
    quantized,
    random_quantized,
    theirs,
    with_tensor,
    write,
)


@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize(
    ("bits", "kind"), [(2, "q4_0"), (3, "q4_0"), (4, "q4_0"), (4, "q5_0"), (5, "q5_0"), (4, "q8_0"), (8, "q8_0")]
)
def test_symmetric_codes_stand_for_scale_times_code_minus_zero(
    bits: int, kind: str, group_size: int, tmp_path: Path
) -> None:
    """Bit for bit, by gguf-py's own dequantization."""
    source = quantized(AffineGroups(bits=bits, group_size=group_size))
    _, tensors = theirs(write(source, tmp_path / "m.gguf", kind))
    for name, found, heads in ((UP_PROJ, "blk.0.ffn_up.weight", 0), (Q_PROJ, "blk.0.attn_q.weight", 4)):
        wanted = source.weights[name].read().dequantized()  # type: ignore[union-attr]
        wanted = permuted(wanted, heads) if heads else wanted
        assert (tensors[found] + np.float32(0)).tobytes() == (wanted + np.float32(0)).tobytes()


TERNARY = ("tq2_0", "tq1_0", "q2_0", "q4_0", "q5_0", "q8_0")
"""The types that hold three levels exactly."""


@pytest.mark.parametrize("group_size", [64, 128, 256, 512, -1])
@pytest.mark.parametrize("kind", TERNARY)
def test_ternary_codes_come_back_with_their_scales(kind: str, group_size: int, tmp_path: Path) -> None:
    """Or are refused where a block would hold two scales; scales of both signs, subnormal, and zero."""
    spec = AffineGroups(bits=2, group_size=group_size, ternary=True)
    source = quantized(spec, WIDE)
    tensor = source.weights[DOWN_PROJ].read()
    assert isinstance(tensor, QuantizedTensor)
    scale, codes = tensor.scale.copy(), tensor.codes.copy()
    scale[0], scale[1], scale[2], scale[3] = 0, -scale[1], 2.0**-24, -(2.0**-20)
    codes[4], codes[5], codes[6] = 1, 2, np.minimum(codes[6], 1)  # all zero, one sign only
    tensor = QuantizedTensor(spec, codes, {**tensor.arrays, "scale": scale})
    source = replace(
        source, weights={**source.weights, DOWN_PROJ: replace(source.weights[DOWN_PROJ], read=lambda: tensor)}
    )
    elements = blocks.QUANTIZED[kind.upper()].elements
    if spec.group_width(1024) % elements:
        words = rf"q_proj.*: gguf cannot carry ternary g{group_size} as {kind}: groups of {group_size} with a scale "
        with pytest.raises(UnsupportedSpec, match=words + f"each do not share a {kind.upper()} block of {elements}"):
            write(source, tmp_path / "m.gguf", kind)
        return
    path = write(source, tmp_path / "m.gguf", kind)
    back = EXPORTER.read(path).weights[DOWN_PROJ].read()
    assert isinstance(back, QuantizedTensor)
    assert back.scheme == spec
    assert np.array_equal(back.codes, tensor.codes)
    assert np.array_equal(back.scale, tensor.scale)
    if kind != "q2_0":  # gguf-py does not know it
        assert np.array_equal(theirs(path)[1]["blk.0.ffn_down.weight"], tensor.dequantized())


@pytest.mark.parametrize("group_size", [64, 128, -1])
def test_four_levels_lie_in_q2_0_the_other_way_round(group_size: int, tmp_path: Path) -> None:
    spec = AffineGroups(bits=2, group_size=group_size)
    source = quantized(spec, WIDE)
    tensor = source.weights[DOWN_PROJ].read()
    assert isinstance(tensor, QuantizedTensor)
    scale = tensor.scale.copy()
    scale[0], scale[1], scale[2] = 0, -scale[1], 2.0**-24
    tensor = QuantizedTensor(spec, tensor.codes, {**tensor.arrays, "scale": scale})
    source = replace(
        source, weights={**source.weights, DOWN_PROJ: replace(source.weights[DOWN_PROJ], read=lambda: tensor)}
    )
    path = write(source, tmp_path / "m.gguf", "q2_0")
    info = read_gguf(path).tensors["blk.0.ffn_down.weight"]
    raw = read_gguf(path).rows(info.name, 0, info.shape[0])
    codes, stored, _ = blocks.unpack(blocks.Q2_0, raw)
    assert np.array_equal(codes, 3 - tensor.codes)
    assert np.array_equal(stored, np.repeat(-scale, stored.shape[1] // scale.shape[1], axis=1))
    assert np.array_equal(blocks.dequantize(blocks.Q2_0, raw), tensor.dequantized())
    back = EXPORTER.read(path).weights[DOWN_PROJ].read()
    assert isinstance(back, QuantizedTensor)
    assert (back.scheme, back.scale.tobytes()) == (spec, scale.tobytes())
    assert np.array_equal(back.codes, tensor.codes)


@pytest.mark.parametrize("kind", ["tq2_0", "tq1_0"])
def test_three_levels_hold_no_four(kind: str) -> None:
    with pytest.raises(UnsupportedSpec, match=f"{kind.upper()} does not hold the codes of int2 row sym") as refusal:
        EXPORTER.prepare(quantized(AffineGroups(bits=2, group_size=-1), WIDE), ExportOptions(type=kind))
    assert str(refusal.value.hint) == "choose type q2_0 or q4_0 or q4_1 or q5_0 or q5_1 or q8_0"


@pytest.mark.parametrize(("bits", "kind"), [(2, "q4_1"), (4, "q4_1"), (4, "q5_1"), (5, "q5_1")])
def test_asymmetric_codes_are_equal_and_minimums_are_rounded_once(bits: int, kind: str, tmp_path: Path) -> None:
    source = quantized(AffineGroups(bits=bits, group_size=64, symmetric=False))
    path = write(source, tmp_path / "m.gguf", kind)
    raw = next(t for t in gguf.GGUFReader(path).tensors if t.name == "blk.0.ffn_up.weight").data
    codes, scale, minimum = blocks.unpack(blocks.QUANTIZED[kind.upper()], np.asarray(raw))
    tensor = source.weights[UP_PROJ].read()
    assert isinstance(tensor, QuantizedTensor)
    assert np.array_equal(codes, tensor.codes)
    assert np.array_equal(scale, np.repeat(tensor.scale, 2, axis=1))
    assert minimum is not None
    exact = -np.repeat(tensor.scale.astype(float) * tensor.zero, 2, axis=1)
    assert (np.abs(minimum.astype(float) - exact) <= np.spacing(np.abs(minimum)).astype(float) / 2).all()


@pytest.mark.parametrize(("bits", "kind"), [(3, "q4_0"), (4, "q5_0"), (4, "q8_0"), (7, "q8_0")])
def test_asymmetric_weights_are_exact_in_types_that_hold_the_difference(bits: int, kind: str, tmp_path: Path) -> None:
    source = quantized(AffineGroups(bits=bits, group_size=64, symmetric=False))
    back = EXPORTER.read(write(source, tmp_path / "m.gguf", kind)).weights[UP_PROJ]
    assert isinstance(back, QuantizedView)
    assert back.scheme == AffineGroups(bits=int(kind[1]), group_size=64)
    assert np.array_equal(back.read().dequantized(), source.weights[UP_PROJ].read().dequantized())  # type: ignore[union-attr]


HOLDS = {
    ("q2_0", True): (2,),
    ("q2_0", False): (),
    ("tq2_0", True): (),
    ("tq1_0", False): (),
    ("q4_0", True): (2, 3, 4),
    ("q4_0", False): (2, 3),
    ("q4_1", True): (2, 3, 4),
    ("q4_1", False): (2, 3, 4),
    ("q5_0", True): (2, 3, 4, 5),
    ("q5_0", False): (2, 3, 4),
    ("q5_1", True): (2, 3, 4, 5),
    ("q5_1", False): (2, 3, 4, 5),
    ("q8_0", True): (2, 3, 4, 5, 6, 7, 8),
    ("q8_0", False): (2, 3, 4, 5, 6, 7),
}


@pytest.mark.parametrize(("kind", "symmetric"), HOLDS)
def test_what_a_type_holds(kind: str, symmetric: bool) -> None:
    """Against the definition: the smallest and largest of code - zero (or code) fit the block's integers."""
    for bits in range(2, 9):
        spec = AffineGroups(bits=bits, group_size=64, symmetric=symmetric)
        if bits in HOLDS[kind, symmetric]:
            EXPORTER.prepare(quantized(spec), ExportOptions(type=kind))
            continue
        with pytest.raises(UnsupportedSpec, match="gguf") as refusal:
            EXPORTER.prepare(quantized(spec), ExportOptions(type=kind))
        assert "model.layers.0" in str(refusal.value)
        able = [other for (other, s), widths in HOLDS.items() if s is symmetric and bits in widths]
        for other in able or ["f16"]:
            assert other in str(refusal.value.hint)


DEFAULTS = {
    AffineGroups(bits=2, group_size=32): "q4_0",
    AffineGroups(bits=2, group_size=64): "q2_0",
    AffineGroups(bits=2, group_size=-1): "q2_0",
    AffineGroups(bits=2, group_size=32, ternary=True): "q4_0",
    AffineGroups(bits=2, group_size=64, ternary=True): "q2_0",
    AffineGroups(bits=2, group_size=128, ternary=True): "q2_0",
    AffineGroups(bits=2, group_size=256, ternary=True): "tq2_0",
    AffineGroups(bits=2, group_size=-1, ternary=True): "tq2_0",
    AffineGroups(bits=4, group_size=128): "q4_0",
    AffineGroups(bits=5, group_size=32): "q5_0",
    AffineGroups(bits=8, group_size=-1): "q8_0",
    AffineGroups(bits=3, group_size=32, symmetric=False): "q4_1",
    AffineGroups(bits=4, group_size=64, symmetric=False): "q4_1",
    AffineGroups(bits=5, group_size=64, symmetric=False): "q5_1",
    AffineGroups(bits=6, group_size=64, symmetric=False): "q8_0",
}


@pytest.mark.parametrize("spec", DEFAULTS, ids=str)
def test_the_default_is_the_smallest_type_that_keeps_the_codes(spec: AffineGroups) -> None:
    planned = EXPORTER.prepare(quantized(spec, WIDE), ExportOptions())
    types = {tensor.name: tensor.type for tensor in planned.tensors}
    assert types["blk.0.attn_q.weight"] == types["blk.0.ffn_down.weight"] == DEFAULTS[spec]
    assert types["token_embd.weight"] == "q8_0"
    assert planned.options["type"] == DEFAULTS[spec]
    assert any("1 dense matrices (token_embd.weight ...) become q8_0" in note for note in planned.notes)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (AffineGroups(bits=4, group_size=16), "groups of 16 with a scale each do not share"),
        (AffineGroups(bits=8, group_size=32, symmetric=False), "does not hold the codes of int8 g32 asym"),
    ],
    ids=str,
)
def test_codes_that_no_block_holds_are_refused_with_a_hint(spec: AffineGroups, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedSpec) as refusal:
        EXPORTER.prepare(quantized(spec), ExportOptions())
    assert reason in str(refusal.value)
    assert "f16" in str(refusal.value.hint)
    write(quantized(spec), tmp_path / "m.gguf", "f16")


def test_mixed_codes_take_a_type_each() -> None:
    source = quantized(AffineGroups(bits=4, group_size=64))
    eight = random_quantized((256, 128), AffineGroups(bits=8, group_size=32))
    mixed = with_tensor(source, UP_PROJ, eight)
    types = {tensor.name: tensor.type for tensor in EXPORTER.prepare(mixed, ExportOptions()).tensors}
    assert (types["blk.0.ffn_up.weight"], types["blk.0.ffn_gate.weight"]) == ("q8_0", "q4_0")
    with pytest.raises(UnsupportedSpec, match="up_proj"):
        EXPORTER.prepare(mixed, ExportOptions(type="q4_0"))


def test_a_quantized_embedding_is_carried_in_q8_0_beside_smaller_types(tmp_path: Path) -> None:
    source = quantized(AffineGroups(bits=4, group_size=64))
    name = "model.embed_tokens.weight"
    eight = random_quantized((2048, 128), AffineGroups(bits=8, group_size=32))
    path = write(with_tensor(source, name, eight), tmp_path / "m.gguf", "q4_0")
    back = EXPORTER.read(path).weights[name].read()
    assert isinstance(back, QuantizedTensor)
    assert np.array_equal(back.codes, eight.codes)
    assert back.scale.tobytes() == eight.scale.tobytes()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_only_scales_that_are_float16_are_carried(dtype: str, tmp_path: Path) -> None:
    spec = AffineGroups(bits=4, group_size=64, scale_dtype=dtype)
    source = quantized(spec)
    tensor = source.weights[UP_PROJ].read()
    assert isinstance(tensor, QuantizedTensor)

    def with_scale(value: float) -> Checkpoint:
        other = replace(tensor, arrays={**tensor.arrays, "scale": np.full_like(tensor.scale, value)})
        weights = {
            name: QuantizedView(name, view.shape, spec, lambda shape=view.shape: flat(shape, spec))
            if isinstance(view, QuantizedView)
            else view
            for name, view in source.weights.items()
        }
        return replace(source, weights={**weights, UP_PROJ: QuantizedView(UP_PROJ, other.shape, spec, lambda: other)})

    def flat(shape: tuple[int, int], spec: AffineGroups) -> QuantizedTensor:
        made = random_quantized(shape, spec)
        return replace(made, arrays={**made.arrays, "scale": np.full_like(made.scale, 0.25)})

    back = EXPORTER.read(write(with_scale(0.125), tmp_path / "m.gguf")).weights[UP_PROJ].read()
    assert isinstance(back, QuantizedTensor)
    assert back.scale.dtype == SCALE_DTYPES[dtype]
    assert (back.scale == 0.125).all()
    with pytest.raises(UnsupportedSpec, match=UP_PROJ):
        write(with_scale(2.0**-30), tmp_path / "n.gguf")
    with pytest.raises(UnsupportedSpec, match=UP_PROJ):
        write(with_scale(1e6), tmp_path / "n.gguf")


def test_a_minimum_beyond_float16_is_refused(tmp_path: Path) -> None:
    spec = AffineGroups(bits=4, group_size=64, symmetric=False)
    source = quantized(spec)
    tensor = random_quantized((256, 128), spec)
    large = replace(tensor, arrays={"scale": np.full_like(tensor.scale, 60000), "zero": np.full_like(tensor.zero, 15)})
    with pytest.raises(ValueOutOfRange, match=UP_PROJ):
        write(with_tensor(source, UP_PROJ, large), tmp_path / "m.gguf")
