"""llama.cpp's rules for the types of tensors, spelled out for models of known depth."""

from __future__ import annotations

import re

import pytest

from quantkit.exporters.gguf import blocks
from quantkit.exporters.gguf.blocks import BlockType
from quantkit.exporters.gguf.mixture.file_types import FILE_TYPES
from quantkit.exporters.gguf.mixture.rules import NO_WISHES, Traits, Wishes, tensor_types
from quantkit.exporters.gguf.types.codebooks import IQ4_NL, IQ4_XS, MXFP4
from quantkit.exporters.gguf.types.super_blocks import Q2_K, Q3_K, Q4_K, Q5_K, Q6_K

LAYERS = 24
KINDS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
MANY = [0, 1, 2, 5, 8, 11, 14, 17, 20, 21, 22, 23]
"""The first and the last eighth of 24 layers, and every third between."""


def matrices(*, tied: bool = True, layers: int = LAYERS, cols: int = 1024) -> dict[str, tuple[int, int]]:
    found = {"token_embd.weight": (64, cols)}
    for layer in reversed(range(layers)):  # the order that they are given in does not count
        found |= {f"blk.{layer}.{kind}.weight": (64, cols) for kind in KINDS}
    return found if tied else {**found, "output.weight": (64, cols)}


def chosen(
    file: str, *, gqa: int = 2, wishes: Wishes = NO_WISHES, weighted: bool = False, layers: int = LAYERS,
    architecture: str = "minicpm", tied: bool = True, cols: int = 1024,
) -> dict[str, BlockType]:  # fmt: skip
    traits = Traits(architecture=architecture, layers=layers, gqa=gqa)
    shapes = matrices(tied=tied, layers=layers, cols=cols)
    found = tensor_types(shapes, traits, FILE_TYPES[file], wishes, weighted=weighted)
    assert found.keys() == shapes.keys()
    return found


def by_layer(found: dict[str, BlockType], kind: str, block: BlockType) -> list[int]:
    """The layers of which the tensor `kind` is `block`."""
    return [i for i in range(LAYERS) if found[f"blk.{i}.{kind}.weight"] is block]


def others(found: dict[str, BlockType], *kinds: str) -> set[str]:
    """The types of all layers' tensors but those of `kinds`."""
    return {b.name for name, b in found.items() if name.startswith("blk.") and name.split(".")[2] not in kinds}


@pytest.mark.parametrize(("file", "usual"), [("q4_k_m", Q4_K), ("q5_k_m", Q5_K)])
def test_medium_files_have_six_bits_in_half_of_values_and_down_projections(file: str, usual: BlockType) -> None:
    found = chosen(file)
    for kind in ("attn_v", "ffn_down"):
        assert by_layer(found, kind, Q6_K) == MANY
        assert by_layer(found, kind, usual) == [i for i in range(LAYERS) if i not in MANY]
    assert others(found, "attn_v", "ffn_down") == {usual.name}
    assert found["token_embd.weight"] is Q6_K


def test_small_four_bits_have_five_in_the_first_layers() -> None:
    found = chosen("q4_k_s")
    assert by_layer(found, "attn_v", Q5_K) == [0, 1, 2, 3]
    assert by_layer(found, "ffn_down", Q5_K) == [0, 1, 2]
    assert others(found, "attn_v", "ffn_down") == {"Q4_K"}


def test_three_bits() -> None:
    small, medium, large = (chosen(f"q3_k_{size}") for size in "sml")
    assert others(small) == {"Q3_K"}
    assert by_layer(medium, "attn_v", Q5_K) == [0, 1]
    assert by_layer(medium, "attn_v", Q4_K) == list(range(2, LAYERS))
    assert by_layer(medium, "ffn_down", Q5_K) == [0]
    assert by_layer(medium, "ffn_down", Q4_K) == list(range(1, LAYERS))
    assert by_layer(medium, "attn_output", Q4_K) == list(range(LAYERS))
    assert others(medium, "attn_v", "ffn_down", "attn_output") == {"Q3_K"}
    for kind in ("attn_v", "ffn_down", "attn_output"):
        assert by_layer(large, kind, Q5_K) == list(range(LAYERS))
    assert others(large, "attn_v", "ffn_down", "attn_output") == {"Q3_K"}


def test_two_bits_depend_on_how_many_heads_share_values() -> None:
    every = list(range(LAYERS))
    narrow, wide = chosen("q2_k", gqa=2), chosen("q2_k", gqa=4)
    assert (by_layer(narrow, "attn_v", Q3_K), by_layer(wide, "attn_v", Q4_K)) == (every, every)
    for found in (narrow, wide):
        assert by_layer(found, "ffn_down", Q3_K) == by_layer(found, "attn_output", Q3_K) == every
        assert others(found, "attn_v", "ffn_down", "attn_output") == {"Q2_K"}
    small = chosen("q2_k_s", gqa=4)
    assert by_layer(small, "ffn_down", Q4_K) == [0, 1, 2]
    assert by_layer(small, "attn_v", Q4_K) == every
    assert others(chosen("q2_k_s"), "ffn_down") == {"Q2_K"}


@pytest.mark.parametrize(("file", "usual"), [("iq4_nl", IQ4_NL), ("iq4_xs", IQ4_XS)])
def test_tables_of_levels(file: str, usual: BlockType) -> None:
    found = chosen(file)
    assert by_layer(found, "ffn_down", Q5_K) == [0, 1, 2]
    assert others(found, "ffn_down") == {usual.name}
    assert by_layer(chosen(file, gqa=4), "attn_v", Q5_K) == list(range(LAYERS))
    assert others(chosen(file, weighted=True)) == {usual.name}


def test_importance_weights_change_the_first_down_projections_of_old_types() -> None:
    assert others(chosen("q4_0")) == {"Q4_0"}
    assert by_layer(chosen("q4_0", weighted=True), "ffn_down", blocks.Q4_1) == [0, 1, 2]
    assert by_layer(chosen("q5_0", weighted=True), "ffn_down", blocks.Q5_1) == [0, 1, 2]


@pytest.mark.parametrize("file", FILE_TYPES)
def test_head_and_embedding(file: str) -> None:
    """The head has six bits, or eight; an embedding beside it is as other tensors, four bits beside ternary ones."""
    usual = FILE_TYPES[file].block
    head = blocks.Q8_0 if file in ("q8_0", "mxfp4_moe") else Q6_K
    embedding = {"mxfp4_moe": blocks.Q8_0, "tq1_0": Q4_K, "tq2_0": Q4_K, "q2_0": Q4_K}.get(file, usual)
    assert chosen(file)["token_embd.weight"] is head
    apart = chosen(file, tied=False)
    assert (apart["output.weight"], apart["token_embd.weight"]) == (head, embedding)


def test_a_dense_model_has_no_experts_which_alone_get_mxfp4() -> None:
    assert set(chosen("mxfp4_moe").values()) == {blocks.Q8_0}
    assert set(chosen("mxfp4_moe", wishes=Wishes(pure=True)).values()) == {MXFP4}


def test_llama_70b_has_five_bits_in_values() -> None:
    found = chosen("q3_k_s", layers=80, gqa=8, architecture="llama")
    assert by_layer(found, "attn_v", Q5_K) == list(range(LAYERS))
    assert by_layer(chosen("q3_k_s", layers=80, gqa=8), "attn_v", Q3_K) == list(range(LAYERS))
    assert by_layer(chosen("q3_k_s", layers=80, gqa=1, architecture="llama"), "attn_v", Q3_K) == list(range(LAYERS))


@pytest.mark.parametrize(
    ("file", "kind", "block"),
    [
        ("q2_k_s", "attn_q", blocks.Q4_0), ("q3_k_s", "attn_q", blocks.Q4_0), ("q4_k_s", "attn_q", blocks.Q5_0),
        ("q5_k_s", "attn_q", blocks.Q5_1), ("q6_k", "attn_q", blocks.Q8_0), ("iq4_xs", "attn_q", IQ4_NL),
        ("tq2_0", "attn_q", blocks.Q4_0), ("q4_k_m", "ffn_down", blocks.Q8_0), ("q4_0", "attn_q", blocks.Q4_0),
    ],
)  # fmt: skip
def test_rows_that_are_no_whole_blocks_of_256_get_smaller_ones(file: str, kind: str, block: BlockType) -> None:
    found = chosen(file, cols=160)
    assert found[f"blk.0.{kind}.weight"] is block
    assert found["token_embd.weight"] is blocks.Q8_0
    assert chosen(file, cols=72)[f"blk.0.{kind}.weight"] is blocks.F16


def test_wishes_stand_above_the_rules_and_tensors_that_they_name_are_not_counted() -> None:
    """The four first values of q4_k_s are those of layers 1 to 4 where layer 0 was named."""
    named = Wishes(patterns=((re.compile("blk.0.attn_v"), blocks.Q8_0), (re.compile("attn_v|up"), Q2_K)))
    found = chosen("q4_k_s", wishes=Wishes(patterns=named.patterns[:1]))
    assert found["blk.0.attn_v.weight"] is blocks.Q8_0
    assert by_layer(found, "attn_v", Q5_K) == [1, 2, 3, 4]
    both = chosen("q4_k_s", wishes=named)
    assert both["blk.0.attn_v.weight"] is blocks.Q8_0
    assert by_layer(both, "attn_v", Q2_K) == list(range(1, LAYERS))
    assert by_layer(both, "ffn_up", Q2_K) == list(range(LAYERS))


def test_wishes_for_head_and_embedding() -> None:
    apart = chosen("q4_k_m", tied=False, wishes=Wishes(output=blocks.F16, embedding=blocks.Q8_0, pure=True))
    assert (apart["output.weight"], apart["token_embd.weight"]) == (blocks.F16, blocks.Q8_0)
    assert others(apart) == {"Q4_K"}
    assert chosen("q4_k_m", wishes=Wishes(output=blocks.Q8_0))["token_embd.weight"] is blocks.Q8_0
    assert set(chosen("q4_k_m", tied=False, wishes=Wishes(pure=True)).values()) == {Q4_K}
