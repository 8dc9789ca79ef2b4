"""Faults of the engine: llama.cpp really runs, but reads another file than the artifact, which is right.

So it computes what an engine would that got this number, these rows or this vocabulary wrong. Left out is what moves
predictions less than rounding a layer's inputs to int8 does: a larger epsilon, one LongRoPE factor of many.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.faults import scalars, tokenizer, weights
from benchmarks.faults.fault import ENGINE, Fault, Level, Proof, Trial, Way
from quantkit.protocols import Runtime, Session

CHOSEN = {
    **{
        name: scalars.CHANGES[name]
        for name in (
            "rope_theta doubled",
            "scale_emb 12 -> 11",
            "scale_depth 1.4 -> 1.5",
            "dim_model_base 64 -> 66",
            "LongRoPE dropped",
            "twice the heads, half as wide",
        )
    },
    **{
        name: weights.GROSS[name]
        for name in (
            "attention of one layer zeroed",
            "two query heads swapped",
            "q and k in pairs instead of halves",
            "gate and up exchanged",
            "two layers exchanged",
            "a norm set to 1",
        )
    },
    **{
        name: tokenizer.CHANGES[name]
        for name in ("1,700 vocabulary entries rotated", "scores reversed", "no space before a text")
    },
}

FAULTS = tuple(
    Fault(
        name=f"engine: {name}",
        kind="engine",
        level=Level.ENGINE,
        change=change,
        trials=(Trial(Way.HONEST, Proof.GOLDEN, (ENGINE,)),),
        containers=("gguf",),
    )
    for name, change in CHOSEN.items()
)


class Misled:
    """A runtime that opens `reads` whatever it is asked for; in all else it is `runtime`."""

    def __init__(self, runtime: Runtime, reads: Path) -> None:
        self._runtime, self._reads = runtime, reads

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    def open(self, path: Path) -> Session:
        """Load the wrong file in the real engine."""
        return self._runtime.open(self._reads)
