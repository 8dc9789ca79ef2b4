"""Blocks with quantized scales, or with a table: bytes and values, against literals, gguf-py and ggml itself."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest

from quantkit import registry
from quantkit.errors import NonFiniteValues
from quantkit.exporters.gguf.blocks import BlockType
from quantkit.exporters.gguf.types import super_blocks
from quantkit.exporters.gguf.types.codebooks import IQ4_LEVELS, IQ4_NL, IQ4_XS, MXFP4, half_powers
from quantkit.exporters.gguf.types.parts import Parts
from quantkit.exporters.gguf.types.schemes import SCHEMES
from quantkit.exporters.gguf.types.super_blocks import Q2_K, Q3_K, Q4_K, Q5_K, Q6_K
from quantkit.exporters.gguf.types.values import LAYOUTS, dequantized
from quantkit.models.inspection import inspection
from quantkit.models.precision import QUANTIZED, precision_of
from quantkit.tensors.views import QuantizedView
from tests.support import ggml
from tests.support.gguf_writer import write_gguf
from tests.support.memory import memory_checkpoint, tiny_config

by_type = pytest.mark.parametrize("block", list(LAYOUTS), ids=lambda block: block.name)


def half(value: float) -> bytes:
    return struct.pack("<e", value)


def filled(size: int, plain: int, places: Mapping[int, int] | None = None) -> np.ndarray:
    row = np.full((1, size), plain, np.uint8)
    for place, value in (places or {}).items():
        row[0, place] = value
    return row


def run(plain: int, size: int, places: Mapping[int, int] | None = None) -> bytes:
    return filled(size, plain, places).tobytes()


ONE = np.ones(1, np.float16)
SIX_BITS = {  # scale 0 is 33 = 100001b, scale 5 is 50 = 11|0010b, minimum 3 is 6, minimum 4 is 61 = 11|1101b
    "scales": filled(8, 1, {0: 33, 5: 50}),
    "mins": filled(8, 0, {3: 6, 4: 61}),
}
# bytes 0-3: scale j and the high bits of scale j + 4; 4-7: the same of minimums; 8-11: low bits of both of j + 4
SIX_BIT_BYTES = bytes([33, 1 | 3 << 6, 1, 1, 0 | 3 << 6, 0, 0, 6, 1 | 13 << 4, 2, 1, 1])
LITERALS: dict[str, tuple[BlockType, Parts, bytes]] = {
    # a byte has weights l, l + 32, l + 64, l + 96: 129 is in byte 33's lowest bits, 97 in byte 1's highest
    "Q2_K": (
        Q2_K,
        Parts(codes=filled(256, 1, {129: 3, 97: 0}), scales=filled(16, 2, {3: 15}), mins=filled(16, 5, {0: 1}), d=ONE,
              dmin=np.float16([0.5])),
        run(0x52, 16, {0: 0x12, 3: 0x5F}) + run(0x55, 64, {33: 0x57, 1: 0x15}) + half(1) + half(0.5),
    ),
    # code 6 at 33 has its high bit in bit 1 of byte 1, and 2 in bits 2-3 of code byte 1; scale 9 = 45 = 10|1101b is the
    # high half of byte 1, and its upper bits stand at bit 4 = 2 (9 // 4) of byte 9 % 4
    "Q3_K": (
        Q3_K,
        Parts(codes=filled(256, 0, {33: 6}), scales=filled(16, 0, {9: 45}), d=ONE),
        run(0, 32, {1: 2}) + run(0, 64, {1: 2 << 2}) + run(0, 12, {1: 0xD0, 9: 2 << 4}) + half(1),
    ),
    "Q4_K": (
        Q4_K,
        Parts(codes=filled(256, 1, {0: 9, 100: 14}), d=ONE, dmin=np.float16([0.25]), **SIX_BITS),
        half(1) + half(0.25) + SIX_BIT_BYTES + run(0x11, 128, {0: 0x19, 36: 0xE1}),  # 100 = 64 + 32 + 4
    ),
    "Q5_K": (
        Q5_K,
        Parts(codes=filled(256, 1, {0: 25, 100: 30}), d=ONE, dmin=np.float16([0.25]), **SIX_BITS),
        half(1) + half(0.25) + SIX_BIT_BYTES + run(0, 32, {0: 1, 4: 8}) + run(0x11, 128, {0: 0x19, 36: 0xE1}),
    ),
    # 70 = 64 + 6 is the high half of low byte 6, and bits 4-5 of high byte 6: 53 = 11|0101b
    "Q6_K": (
        Q6_K,
        Parts(codes=filled(256, 0, {70: 53}), scales=filled(16, 1, {15: 255}).view(np.int8), d=ONE),
        run(0, 128, {6: 0x50}) + run(0, 64, {6: 3 << 4}) + run(1, 16, {15: 0xFF}) + half(1),
    ),
    "IQ4_NL": (IQ4_NL, Parts(codes=filled(32, 8, {1: 3, 17: 15}), d=ONE), half(1) + run(0x88, 16, {1: 0xF3})),
    # scale 5 = 39 = 10|0111b: bits 10-11 of the word, the high half of byte 2
    "IQ4_XS": (
        IQ4_XS,
        Parts(codes=filled(256, 8, {33: 3}), scales=filled(8, 0, {5: 39}), d=ONE),
        half(1) + bytes([0, 2 << 2]) + run(0, 4, {2: 0x70}) + run(0x88, 128, {17: 0x83}),
    ),
    "MXFP4": (MXFP4, Parts(codes=filled(32, 2, {16: 13}), d=np.uint8([127])), b"\x7f" + run(0x22, 16, {0: 0xD2})),
}  # fmt: skip


@pytest.mark.parametrize("name", LITERALS)
def test_the_smallest_tensor_has_the_literal_bytes(name: str) -> None:
    block, parts, expected = LITERALS[name]
    assert LAYOUTS[block].pack(parts).tobytes() == expected
    assert len(expected) == block.nbytes


def test_codes_stand_for_what_the_formulas_say() -> None:
    values = {name: LAYOUTS[block].values(parts)[0] for name, (block, parts, _) in LITERALS.items()}
    assert values["Q2_K"][[0, 50, 129]].tolist() == [2 * 1 - 0.5 * 1, 15 * 1 - 0.5 * 5, 2 * 3 - 0.5 * 5]
    assert values["Q3_K"][[0, 33, 150]].tolist() == [-32 * -4, -32 * 2, (45 - 32) * -4]
    assert values["Q4_K"][[0, 100, 130, 160]].tolist() == [33 * 9, 1 * 14 - 0.25 * 6, 1 - 0.25 * 61, 50]
    assert values["Q5_K"][[0, 100]].tolist() == [33 * 25, 1 * 30 - 0.25 * 6]
    assert values["Q6_K"][[70, 255]].tolist() == [53 - 32, -1 * -32]
    assert values["IQ4_NL"][[0, 1, 17]].tolist() == [1, -65, 113]
    assert values["IQ4_XS"][[0, 160]].tolist() == [-32 * 1, 7 * 1]
    assert values["MXFP4"][[0, 16]].tolist() == [0.5 * 2, 0.5 * -6]
    assert half_powers(np.uint8([0, 1, 2, 254])).tolist() == [2.0**-128, 2.0**-127, 2.0**-126, 2.0**126]
    assert sorted(IQ4_LEVELS) == list(IQ4_LEVELS)


def any_bytes(block: BlockType) -> np.ndarray:
    """Blocks of random bytes but for scales that are no numbers, and the exponents that leave float32's range."""
    raw = np.random.default_rng(1).integers(0, 256, (200, block.nbytes)).astype(np.uint8)
    if block is MXFP4:
        raw[:, 0] %= 250
    parts = LAYOUTS[block].unpack(raw)
    numbers = np.isfinite(parts.d) & (True if parts.dmin is None else np.isfinite(parts.dmin))
    return raw[numbers]


@by_type
def test_packing_is_a_bijection_on_bytes(block: BlockType) -> None:
    raw = any_bytes(block)
    assert np.array_equal(LAYOUTS[block].pack(LAYOUTS[block].unpack(raw)), raw)


@by_type
def test_dequantizing_gives_the_values_of_gguf_py(block: BlockType) -> None:
    raw = any_bytes(block)
    theirs = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[block.name])
    assert dequantized("w", block, raw).tobytes() == theirs.tobytes()


@pytest.mark.engine("llama-cpp")
@by_type
def test_dequantizing_gives_the_values_of_ggml(block: BlockType) -> None:
    raw = any_bytes(block)
    assert dequantized("w", block, raw).tobytes() == ggml.dequantized(block, raw).tobytes()


@by_type
def test_a_scale_that_is_no_number_is_refused_by_name(block: BlockType) -> None:
    raw = any_bytes(block)[:6].reshape(2, -1)
    place = {"IQ4_NL": 0, "IQ4_XS": 0, "Q4_K": 0, "Q5_K": 2}.get(block.name, block.nbytes - 2)
    if block is MXFP4:
        raw.reshape(6, -1)[4, 0] = 255
    else:
        raw.reshape(6, -1)[4, place : place + 2] = np.frombuffer(half(np.inf), np.uint8)
    with pytest.raises(NonFiniteValues, match=r"'blk\.0\.x': block 4 has a (scale|minimum)"):
        dequantized("blk.0.x", block, raw)


def test_values_beyond_float32_are_refused_by_name() -> None:
    raw = LAYOUTS[MXFP4].pack(Parts(codes=filled(32, 7), d=np.uint8([254])))
    with pytest.raises(NonFiniteValues, match="'w': weights of its MXFP4 blocks exceed"):
        dequantized("w", MXFP4, raw)


CONFIG = tiny_config(vocab_size=320, hidden_size=256, intermediate_size=512, num_hidden_layers=1)


@by_type
def test_a_file_of_another_writer_is_read_as_the_values_of_gguf_py(block: BlockType, tmp_path: Path) -> None:
    """Queries, whose rows are stored in pairs, too."""
    model = memory_checkpoint(CONFIG)
    rng = np.random.default_rng(2)
    raw = {}
    for name, (rows, cols) in {"blk.0.attn_q.weight": (256, 256), "blk.0.ffn_down.weight": (256, 512)}.items():
        data = any_bytes(block)
        picked = data[rng.integers(0, len(data), rows * cols // block.elements)]
        raw[name] = (block.name, picked.reshape(rows, -1))
    path = write_gguf(tmp_path / "m.gguf", model, raw=raw)
    back = registry.exporter("gguf").read(path)
    for kind, name in (("self_attn.q_proj", "blk.0.attn_q.weight"), ("mlp.down_proj", "blk.0.ffn_down.weight")):
        view = back.weights[f"model.layers.0.{kind}.weight"]
        assert isinstance(view, QuantizedView)
        theirs = gguf.quants.dequantize(raw[name][1], gguf.GGMLQuantizationType[block.name])
        if "attn_q" in name:
            theirs = theirs.reshape(4, 32, 2, -1).swapaxes(1, 2).reshape(theirs.shape)
        assert np.array_equal(view.read().dequantized(), theirs)
        assert (view.scheme, view.stored_as) == (SCHEMES[block], block.name.lower())
    assert precision_of(back) == QUANTIZED
    kinds = {kind.type: kind.nbytes for kind in inspection(back).kinds}
    assert kinds[block.name.lower()] == sum(data.nbytes for _, data in raw.values())


def test_every_k_quant_has_256_weights() -> None:
    assert {block.elements for block in super_blocks.LAYOUTS} == {super_blocks.SIZE}
