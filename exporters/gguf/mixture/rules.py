"""`llama-quantize`'s choice of a block type for every tensor, as a function of names and shapes.

Some types depend on how many tensors of a kind came before: the first layers, the last and every third between have
more bits in q4_k_m. llama.cpp counts only the tensors that its own rules choose for, in the order of layers and then
names. Source: `llama-quant.cpp`, `llama_tensor_get_type` and what it calls; rules for experts and for architectures
that are not written here are left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from quantkit.exporters.gguf import blocks
from quantkit.exporters.gguf.blocks import BlockType
from quantkit.exporters.gguf.mixture.file_types import FileType
from quantkit.exporters.gguf.types.codebooks import IQ4_NL, IQ4_XS
from quantkit.exporters.gguf.types.super_blocks import Q2_K, Q3_K, Q4_K, Q5_K, Q6_K

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
VALUES = ("attn_v.weight", "attn_kv_b.weight")
"""What makes values; of latent attention it makes the unrotated part of keys as well."""
WIDE_GQA = 4
"""Query heads for each key-value head from which on the few weights of values get more bits."""
LAYERS_OF_70B = 80
FALLBACKS: Mapping[BlockType, BlockType] = {
    **dict.fromkeys((blocks.Q2_0, blocks.TQ1_0, blocks.TQ2_0, Q2_K, Q3_K), blocks.Q4_0),
    Q4_K: blocks.Q5_0,
    Q5_K: blocks.Q5_1,
    Q6_K: blocks.Q8_0,
    IQ4_XS: IQ4_NL,
}
"""What rows that are not whole blocks get instead; f16 where they are no whole blocks of that either."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What the rules ask of a model. architecture: `general.architecture`. gqa: query heads per key-value head."""

    architecture: str
    layers: int
    gqa: int

    @property
    def is_70b(self) -> bool:
        """Whether llama.cpp takes it for Llama-2-70B, whose values get more bits."""
        return self.architecture == "llama" and self.layers == LAYERS_OF_70B and self.gqa > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What a user has chosen in place of the rules.

    patterns: regular expressions searched in names, with the type of what they match; the first one counts.
    output, embedding: of head and embedding. pure: whether all others get the file's own type.
    """

    patterns: tuple[tuple[re.Pattern[str], BlockType], ...] = ()
    output: BlockType | None = None
    embedding: BlockType | None = None
    pure: bool = False

    def of(self, name: str) -> BlockType | None:
        """What was chosen for a tensor by itself, if anything."""
        if name == EMBEDDING and self.embedding is not None:
            return self.embedding
        if name == HEAD and self.output is not None:
            return self.output
        return next((block for pattern, block in self.patterns if pattern.search(name)), None)


NO_WISHES = Wishes()


def tensor_types(
    matrices: Mapping[str, tuple[int, ...]],
    traits: Traits,
    kind: FileType,
    wishes: Wishes = NO_WISHES,
    *,
    weighted: bool = False,
) -> dict[str, BlockType]:
    """The block type of every matrix.

    Args:
        matrices: shapes of all quantizable tensors, by GGUF's names; without "output.weight" the head is tied.
        traits, kind: the model, and the file that is made of it.
        wishes: what stands above the rules.
        weighted: whether there are importance weights, which changes some rules.
    """
    rules = _Rules(kind.name, kind.block, traits, tied=HEAD not in matrices, weighted=weighted, wishes=wishes)
    return {name: rules.chosen(name, matrices[name][-1]) for name in sorted(matrices, key=_place)}


def _place(name: str) -> tuple[int, str]:
    layer = re.match(r"blk\.(\d+)\.", name)
    return (int(layer[1]) if layer else -1, name)


@dataclass(slots=True)
class _Rules:
    """The rules with their counts of values and down projections."""

    file: str
    block: BlockType
    traits: Traits
    tied: bool
    weighted: bool
    wishes: Wishes
    values: int = field(default=0, init=False)
    downs: int = field(default=0, init=False)

    def chosen(self, name: str, cols: int) -> BlockType:
        outer = {EMBEDDING: self.wishes.embedding, HEAD: self.wishes.output}.get(name)
        if outer is not None:
            return outer
        wanted = self.wishes.of(name)
        if wanted is None:
            wanted = self.block if self.wishes.pure else self._by_rule(name, cols)
        return fitting(wanted, cols)

    def _by_rule(self, name: str, cols: int) -> BlockType:
        if name == HEAD or (name == EMBEDDING and self.tied):
            return self._head(cols)
        if self.file == "mxfp4_moe":
            return blocks.Q8_0  # experts alone get MXFP4
        if name == EMBEDDING and self.block in (blocks.TQ1_0, blocks.TQ2_0, blocks.Q2_0):
            return Q4_K
        if name.endswith(VALUES):
            return self._value()
        if name.endswith("ffn_down.weight"):
            return self._down()
        by_file = {"q2_k": Q3_K, "q3_k_m": Q4_K, "q3_k_l": Q5_K} if name.endswith("attn_output.weight") else {}
        return by_file.get(self.file, self.block)

    def _head(self, cols: int) -> BlockType:
        if self.wishes.output is not None:
            return self.wishes.output
        whole = cols % self.block.elements == 0
        return Q6_K if whole and self.file != "mxfp4_moe" and self.block is not blocks.Q8_0 else blocks.Q8_0

    def _value(self) -> BlockType:
        number, wide = self.values, self.traits.gqa >= WIDE_GQA
        self.values += 1
        found = self.block
        if self.file in ("q2_k", "q2_k_s") and wide:
            found = Q4_K
        elif self.file == "q2_k":
            found = Q3_K
        elif self.file == "q3_k_m":
            found = Q5_K if number < 2 else Q4_K
        elif self.file == "q3_k_l" or (self.file in ("iq4_nl", "iq4_xs") and wide):
            found = Q5_K
        elif self.file in ("q4_k_m", "q5_k_m") and more_bits(number, self.traits.layers):
            found = Q6_K
        elif self.file == "q4_k_s" and number < 4:
            found = Q5_K
        return Q5_K if self.traits.is_70b and found in (Q3_K, Q4_K) else found

    def _down(self) -> BlockType:
        number, layers = self.downs, self.traits.layers
        self.downs += 1
        first = number < layers // 8
        if self.file == "q2_k":
            return Q3_K
        if self.file == "q3_k_m":
            return Q5_K if number < layers // 16 else Q4_K
        if self.file == "q3_k_l":
            return Q5_K
        if self.file in ("q4_k_m", "q5_k_m") and more_bits(number, layers):
            return Q6_K
        if self.weighted:
            early = {"q2_k_s": Q4_K, "q4_k_s": Q5_K, "q4_0": blocks.Q4_1, "q5_0": blocks.Q5_1}
        else:
            early = {"q2_k_s": Q4_K, "q4_k_s": Q5_K, "iq4_nl": Q5_K, "iq4_xs": Q5_K}
        return early.get(self.file, self.block) if first else self.block


def more_bits(number: int, layers: int) -> bool:
    """Whether a layer is among the first and the last eighth, or every third between."""
    return number < layers // 8 or number >= 7 * layers // 8 or (number - layers // 8) % 3 == 2


def fitting(block: BlockType, cols: int) -> BlockType:
    """`block`, or what rows of `cols` get where they are not whole ones."""
    if cols % block.elements == 0:
        return block
    other = FALLBACKS.get(block, block)
    return other if cols % other.elements == 0 else blocks.F16
