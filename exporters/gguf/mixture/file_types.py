"""Values of `general.file_type`, and the block type that most tensors of such a file have. Source: `llama.h`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quantkit.exporters.gguf import blocks
from quantkit.exporters.gguf.blocks import BlockType
from quantkit.exporters.gguf.types.codebooks import IQ4_NL, IQ4_XS, MXFP4
from quantkit.exporters.gguf.types.super_blocks import Q2_K, Q3_K, Q4_K, Q5_K, Q6_K


@dataclass(frozen=True, slots=True)
class FileType:
    """name: as users type it. id: llama.cpp's number. block: what tensors get by default."""

    name: str
    id: int
    block: BlockType


MIXED: Mapping[str, FileType] = {
    kind.name: kind
    for kind in (
        FileType("q2_k", 10, Q2_K),
        FileType("q2_k_s", 21, Q2_K),
        FileType("q3_k_s", 11, Q3_K),
        FileType("q3_k_m", 12, Q3_K),
        FileType("q3_k_l", 13, Q3_K),
        FileType("q4_k_s", 14, Q4_K),
        FileType("q4_k_m", 15, Q4_K),
        FileType("q5_k_s", 16, Q5_K),
        FileType("q5_k_m", 17, Q5_K),
        FileType("q6_k", 18, Q6_K),
        FileType("iq4_nl", 25, IQ4_NL),
        FileType("iq4_xs", 30, IQ4_XS),
        FileType("mxfp4_moe", 38, MXFP4),
    )
}
"""File types that are written from dense weights alone."""

FILE_TYPES: Mapping[str, FileType] = {
    kind.name: kind
    for kind in (
        *MIXED.values(),
        FileType("q4_0", 2, blocks.Q4_0),
        FileType("q4_1", 3, blocks.Q4_1),
        FileType("q8_0", 7, blocks.Q8_0),
        FileType("q5_0", 8, blocks.Q5_0),
        FileType("q5_1", 9, blocks.Q5_1),
        FileType("tq1_0", 36, blocks.TQ1_0),
        FileType("tq2_0", 37, blocks.TQ2_0),
        FileType("q2_0", 41, blocks.Q2_0),
    )
}
"""Every file type of quantized tensors that is written."""

PLAIN_FILES: Mapping[str, int] = {"F32": 0, "F16": 1, "BF16": 32}
"""Numbers of the others, by the block type of their tensors."""


def file_type_number(block: BlockType) -> int:
    """`general.file_type` of a file most of whose weights are `block`, one of `blocks`."""
    return PLAIN_FILES[block.name] if block.name in PLAIN_FILES else FILE_TYPES[block.name.lower()].id
