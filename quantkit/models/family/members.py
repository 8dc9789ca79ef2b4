"""The members of the family: one line each, of what their configs say that tells them apart.

Facts only: what is done with them is elsewhere. Sources: the members' own config.json, and where those are not public,
the shapes that their published sizes leave (MiniCPM-MoE, MiniCPM5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Shape:
    """Hidden and intermediate size, layers, query and key-value heads, channels per head."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A published model, or several of one shape.

    also: other models with the same config. architecture: that of `ModelSpec`, or the class of one that has none here.
    contexts: `max_position_embeddings` as published. marks: further keys of its config that tell it from others.
    refused: why it is not taken; None where it is. limited: what can be done with it where that is not everything.
    """

    name: str
    also: tuple[str, ...] = ()
    architecture: str = "minicpm"
    shape: Shape
    vocabulary: int
    contexts: tuple[int, ...]
    marks: Mapping[str, Any] = field(default_factory=dict)
    refused: str | None = None
    limited: str | None = None


_1B = Shape(1536, 3840, 52, 24, 8, 64)
_2B = Shape(2304, 5760, 40, 36, 36, 64)
_8B = Shape(4096, 16384, 32, 32, 2, 128)

MEMBERS = (
    Member(
        name="MiniCPM4-0.5B",
        also=("BitCPM4-0.5B", "BitCPM-CANN-0.5B", "MiniCPM4-0.5B-QAT"),
        shape=Shape(1024, 4096, 24, 16, 2, 64),
        vocabulary=73448,
        contexts=(32768,),
    ),
    Member(
        name="MiniCPM4-8B",
        also=("MiniCPM4-Survey", "MiniCPM4-MCP", "BitCPM-CANN-8B"),
        shape=_8B,
        vocabulary=73448,
        contexts=(32768,),
    ),
    Member(name="MiniCPM4.1-8B", also=("AgentCPM-Report",), shape=_8B, vocabulary=73448, contexts=(65536,)),
    Member(
        name="MiniCPM4-3B",
        also=("the text model of MiniCPM-V-4", "BitCPM-CANN-3B"),
        architecture="llama",
        shape=Shape(2560, 10240, 32, 32, 2, 128),
        vocabulary=73448,
        contexts=(32768,),
    ),
    Member(name="BitCPM4-1B", shape=_1B, vocabulary=73448, contexts=(32768,)),
    Member(
        name="BitCPM-CANN-1B",
        architecture="llama",
        shape=Shape(2048, 6144, 28, 16, 2, 128),
        vocabulary=73448,
        contexts=(32768,),
    ),
    Member(
        name="MiniCPM5-1B",
        architecture="llama",
        shape=Shape(1536, 4608, 24, 16, 2, 128),
        vocabulary=130560,
        contexts=(131072,),
    ),
    Member(
        name="MiniCPM5-2B",
        architecture="llama",
        shape=Shape(2048, 6144, 42, 16, 2, 128),
        vocabulary=130560,
        contexts=(131072,),
    ),
    Member(name="MiniCPM-1B", shape=_1B, vocabulary=73440, contexts=(4096,)),
    Member(
        name="MiniCPM-2B",
        also=("the text model of MiniCPM-V and -V-2",),
        shape=_2B,
        vocabulary=122753,
        contexts=(2048, 4096),
    ),
    Member(name="MiniCPM-2B-128k", shape=_2B, vocabulary=122760, contexts=(65536,)),
    Member(
        name="Llama-3-8B",
        also=("the text model of MiniCPM-Llama3-V-2.5",),
        architecture="llama",
        shape=Shape(4096, 14336, 32, 32, 8, 128),
        vocabulary=128256,
        contexts=(8192,),
    ),
    Member(
        name="MiniCPM-S-1B",
        shape=_1B,
        vocabulary=73440,
        contexts=(4096,),
        marks={"hidden_act": "fatrelu"},
        refused="its MLP has the activation FATReLU, not SiLU",
    ),
    Member(
        name="MiniCPM-MoE-8x2B",
        shape=_2B,
        vocabulary=122753,
        contexts=(4096,),
        marks={"num_experts": 8},
        refused="a mixture of 8 experts",
    ),
    Member(
        name="MiniCPM3-4B",
        architecture="minicpm3",
        shape=Shape(2560, 6400, 62, 40, 40, 96),
        vocabulary=73448,
        contexts=(32768,),
        limited="hf, compressed-tensors, awq and gguf: its attention is latent (MLA)",
    ),
    Member(
        name="MiniCPM-SALA",
        architecture="sala",
        shape=Shape(4096, 16384, 32, 32, 2, 128),
        vocabulary=73448,
        contexts=(524288,),
        limited="inspect and the reference only: three quarters of its layers are linear (lightning) attention",
    ),
)
