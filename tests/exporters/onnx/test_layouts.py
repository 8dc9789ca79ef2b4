"""How a weight lies in the data file: literal bytes, and every layout against a packer that knows its text alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from quantkit.exporters.onnx.elements import FLOAT, FLOAT16, SIGNED, UINT8, UNSIGNED
from quantkit.exporters.onnx.layouts import CODES, SCALES, ZERO_POINTS, Blocks, Columns, Quantized, Rows
from quantkit.exporters.onnx.schemes import block_of
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView
from tests.support.quantized_models import random_quantized

ASYM = AffineGroups(bits=4, group_size=16, symmetric=False)
SYM = AffineGroups(bits=4, group_size=16)


def parts_of(layout: Quantized, tensor: QuantizedTensor) -> dict[str, bytes]:
    """The bytes of every part, each as long as it is said to be."""
    view = QuantizedView("w", tensor.shape, tensor.scheme, lambda: tensor)
    found = {
        part: np.ascontiguousarray(data).tobytes()
        for part, data in zip(layout.parts, layout.buffers(view), strict=True)
    }
    sizes = {part: element.nbytes(shape) for part, (element, shape) in layout.parts.items()}
    assert {part: len(data) for part, data in found.items()} == sizes
    return found


def small(scheme: AffineGroups) -> QuantizedTensor:
    """Two rows of two groups: code k of row n is (n + k) % 16; scales 1, 2, 3 and 4, zero points 3, 5, 7 and 9."""
    rows, cols = np.indices((2, 32))
    zero = np.array([[3, 5], [7, 9]], np.uint8) if not scheme.symmetric else np.full((2, 2), 8, np.uint8)
    return QuantizedTensor(
        scheme,
        ((rows + cols) % 16).astype(np.uint8),
        {"scale": np.array([[1, 2], [3, 4]], np.float16), "zero": zero},
    )


EVEN, ODD = "1032547698badcfe" * 2, "21436587a9cbed0f" * 2
ONES = {n: np.float32(n).tobytes().hex() for n in (1, 2, 3, 4)}


def test_blocks_of_four_bits_are_these_bytes() -> None:
    found = parts_of(Blocks((2, 32), ASYM, 16, FLOAT), small(ASYM))
    assert {part: data.hex() for part, data in found.items()} == {
        CODES: EVEN + ODD,
        SCALES: ONES[1] + ONES[2] + ONES[3] + ONES[4],
        ZERO_POINTS: "5397",
    }


def test_columns_of_four_bits_are_these_bytes() -> None:
    """Two rows fill a byte: of column k the codes k and k + 1. Signed, 8 is 0 and 0 is -8."""
    found = parts_of(Columns((2, 32), ASYM, 16, FLOAT16), small(ASYM))
    column = "1021324354657687 98a9bacbdcedfe0f".replace(" ", "")
    assert {part: data.hex() for part, data in found.items()} == {
        CODES: column * 2,
        SCALES: "003c004200400044",
        ZERO_POINTS: "7395",
    }
    signed = parts_of(Columns((2, 32), SYM, 16, FLOAT16), small(SYM))
    assert signed[CODES].hex() == "98a9bacbdcedfe0f1021324354657687" * 2
    assert set(signed) == {CODES, SCALES}


def test_rows_of_a_lookup_have_a_byte_for_each_zero_point() -> None:
    found = parts_of(Rows((2, 32), ASYM, 16, FLOAT), small(ASYM))
    assert (found[CODES].hex(), found[ZERO_POINTS].hex()) == (EVEN + ODD, "03050709")


def test_the_types_and_shapes_are_those_that_the_operators_take() -> None:
    wide = replace(ASYM, group_size=48)
    assert block_of("w", wide, 96) == 16
    assert Blocks((5, 96), wide, 16, FLOAT).parts == {
        CODES: (UINT8, (5, 6, 8)), SCALES: (FLOAT, (5, 6)), ZERO_POINTS: (UINT8, (5, 3)),
    }  # fmt: skip
    assert Columns((5, 96), wide, 16, FLOAT).parts == {
        CODES: (UNSIGNED[4], (96, 5)), SCALES: (FLOAT, (6, 5)), ZERO_POINTS: (UNSIGNED[4], (6, 5)),
    }  # fmt: skip
    assert Columns((5, 96), replace(SYM, bits=2), 16, FLOAT).parts[CODES] == (SIGNED[2], (96, 5))


def bit_by_bit(codes: np.ndarray, bits: int) -> bytes:
    """Codes of one row, the first in the lowest bits."""
    number = sum(int(code) << (place * bits) for place, code in enumerate(codes))
    return number.to_bytes(-(-len(codes) * bits // 8), "little")


@pytest.mark.parametrize("rows", [3, 8, 16])
@pytest.mark.parametrize("symmetric", [True, False], ids=["sym", "asym"])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("group", [32, 48, 96, -1])
def test_every_layout_is_what_its_text_says_and_reads_back(group: int, bits: int, symmetric: bool, rows: int) -> None:
    scheme = AffineGroups(bits=bits, group_size=group, symmetric=symmetric)
    tensor = random_quantized((rows, 96), scheme, seed=bits)
    block = block_of("w", scheme, 96)
    repeats = 96 // block // scheme.groups(96)
    zero = np.repeat(tensor.zero, repeats, axis=1)
    turned = (tensor.codes.T.reshape(-1).astype(int) - (2 ** (bits - 1) if symmetric else 0)) % 2**bits
    codes = {
        Blocks: b"".join(bit_by_bit(row, bits) for row in tensor.codes),
        Rows: b"".join(bit_by_bit(row, bits) for row in tensor.codes),
        Columns: bit_by_bit(turned, bits),
    }
    zeros = {
        Blocks: b"".join(bit_by_bit(row, bits) for row in zero),
        Rows: zero.tobytes(),
        Columns: bit_by_bit(zero.T.reshape(-1), bits),
    }
    for kind, expected in codes.items():
        layout = kind((rows, 96), scheme, block, FLOAT)
        found = parts_of(layout, tensor)
        assert found[CODES] == expected, kind
        assert found.get(ZERO_POINTS, b"") == (b"" if symmetric else zeros[kind]), kind
        back = layout.tensor("w", {part: np.frombuffer(data, np.uint8) for part, data in found.items()})
        assert back.scheme == scheme
        assert np.array_equal(back.codes, tensor.codes)
        assert np.array_equal(back.scale, tensor.scale)
        assert np.array_equal(back.zero, tensor.zero)
