"""What llama-quantize reads of an importance matrix, and what it says to one of another model."""

from __future__ import annotations

import numpy as np
import pytest

from quantkit.errors import BadOption, InconsistentCheckpoint, UnsupportedSpec
from quantkit.exporters.gguf import blocks
from quantkit.exporters.gguf.blocks import BlockType
from quantkit.exporters.gguf.imatrix.matrix import ImportanceMatrix
from quantkit.exporters.gguf.mixture.file_types import FILE_TYPES
from quantkit.exporters.gguf.types.super_blocks import Q2_K, Q4_K, Q6_K

UP, DOWN, EMBEDDING = "blk.0.ffn_up.weight", "blk.0.ffn_down.weight", "token_embd.weight"
SHAPES: dict[str, tuple[int, ...]] = {EMBEDDING: (9, 256), UP: (512, 256), DOWN: (256, 512)}
TYPES = {EMBEDDING: Q6_K, UP: Q4_K, DOWN: Q6_K}


def matrix(**cols: int) -> ImportanceMatrix:
    names = {"up": UP, "down": DOWN, "embedding": EMBEDDING, "other": "blk.7.ffn_up.weight", "more": "blk.8.x.weight"}
    weights = {names[name]: np.ones(count, np.float32) for name, count in cols.items()}
    return ImportanceMatrix("i.gguf", "0" * 64, weights, ("a.txt", "b.txt"), 3)


def check(one: ImportanceMatrix, types: dict[str, BlockType] | None = None, kind: str = "q4_k_m") -> None:
    one.check(SHAPES, types or TYPES, FILE_TYPES[kind])


def test_a_tensor_without_weights_and_weights_without_a_tensor_are_told() -> None:
    one = matrix(up=256, other=99, more=1)
    check(one)
    missing, unknown = one.notes(SHAPES)
    assert missing == f"i.gguf has no weights for {EMBEDDING} and 1 more: quantized without"
    assert unknown == "i.gguf has weights for blk.7.ffn_up.weight and 1 more, which this model has not"
    assert one.of(DOWN, 512) is None
    assert list(matrix(up=256, down=512, embedding=256).notes(SHAPES)) == []


def test_another_length_is_refused_but_for_the_embedding() -> None:
    with pytest.raises(InconsistentCheckpoint, match=rf"256 weights for {DOWN}, whose rows have 512"):
        check(matrix(up=256, down=256))
    one = matrix(up=256, down=512, embedding=77)
    check(one)
    assert one.of(EMBEDDING, 256) is None
    assert EMBEDDING in next(iter(one.notes(SHAPES)))


def test_q2_k_s_needs_weights_where_it_has_two_bits() -> None:
    types = {EMBEDDING: Q2_K, UP: Q2_K, DOWN: Q4_K}
    check(matrix(up=256), types, "q2_k_s")
    with pytest.raises(UnsupportedSpec, match=UP):
        check(matrix(down=512), types, "q2_k_s")
    check(matrix(down=512), types, "q2_k")


@pytest.mark.parametrize("block", [blocks.Q8_0, blocks.TQ2_0, blocks.F16])
def test_what_no_tensor_reads_is_refused(block: BlockType) -> None:
    types = {**TYPES, UP: block}
    with pytest.raises(BadOption, match="no tensor"):
        check(matrix(up=256), types)
    check(matrix(up=256, down=512), types)


def test_the_keys_are_llama_quantizes() -> None:
    named = [entry[8 : 8 + int.from_bytes(entry[:8], "little")].decode() for entry in matrix(up=256).entries()]
    assert named == [f"quantize.imatrix.{word}" for word in ("file", "dataset", "entries_count", "chunks_count")]
