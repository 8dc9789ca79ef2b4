"""Schemes of block types: codes that a solver has chosen, as blocks and back."""

from __future__ import annotations

import numpy as np
import pytest

from quantkit.exporters.gguf.blocks import BlockType
from quantkit.exporters.gguf.types.schemes import SCHEMES, packed, unpacked
from quantkit.exporters.gguf.types.values import LAYOUTS, dequantized
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.rounding import round_to_nearest


def tensor(block: BlockType) -> QuantizedTensor:
    """Codes and parameters over their whole range."""
    rng = np.random.default_rng(block.id)
    made = round_to_nearest(rng.standard_t(3, (12, 512)).astype(np.float32), SCHEMES[block])
    codes = rng.integers(0, 2**made.scheme.bits, made.shape).astype(np.uint8)
    return QuantizedTensor(made.scheme, codes, made.arrays)


@pytest.mark.parametrize("block", LAYOUTS, ids=lambda block: block.name)
def test_a_tensor_comes_back_from_its_blocks_bit_for_bit(block: BlockType) -> None:
    given = tensor(block)
    back = unpacked("w", block, packed(block, given))
    assert back.scheme == given.scheme
    assert np.array_equal(back.codes, given.codes)
    for name, values in given.arrays.items():
        assert np.array_equal(back.arrays[name], values), name
        assert back.arrays[name].dtype == values.dtype, name


@pytest.mark.parametrize("block", LAYOUTS, ids=lambda block: block.name)
def test_blocks_stand_for_the_weights_of_the_scheme(block: BlockType) -> None:
    """`dequantized` is held to ggml's own; so are the schemes' values, then."""
    given = tensor(block)
    found = dequantized("w", block, packed(block, given))
    assert np.array_equal(found.view(np.uint32) & 0x7FFFFFFF, given.dequantized().view(np.uint32) & 0x7FFFFFFF)
    assert np.array_equal(found, given.dequantized())
