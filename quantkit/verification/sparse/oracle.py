"""What is asked of the reference beyond a runtime: to attend sparsely, and to be watched while it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast

import numpy as np

from quantkit import registry
from quantkit.errors import BadOption, UnsupportedModel
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import SparseSpec
from quantkit.protocols import OracleSession, Runtime
from quantkit.verification.engines import ORACLE, choose_engine, engine_name

DENSE, SPARSE = "dense", "sparse"
"""How a model may attend."""

Watcher = Callable[[int, int, int, np.ndarray], None]
"""Told of layer, group of heads, first position, and a row for each position from there on (T, B): which blocks were
chosen, bool, or by which scores, float32: inf of blocks that always are chosen, -inf of those that never are."""


class SparseOracle(Runtime, Protocol):
    """The reference that attends sparsely, as one of the published codes does."""

    @property
    def variant(self) -> str:
        """Which code."""
        ...

    def sparsely(self, variant: str | None) -> SparseOracle:
        """The same as another code, None = the default; raises `BadOption`."""
        ...

    def watched(
        self, checkpoint: Checkpoint, *, observer: Watcher | None = None, scored: Watcher | None = None
    ) -> OracleSession:
        """An open checkpoint; `scored` is told of scores, then `observer` of what is chosen by them."""
        ...

    def sparse_from(self, sparse: SparseSpec) -> int:
        """Tokens of a prompt, read at once, whose last one attends sparsely."""
        ...


def checked_attention(attention: str | None, variant: str | None) -> None:
    """Raise `BadOption` for another word than `DENSE` and `SPARSE`, or a variant of dense attention."""
    if attention not in (None, DENSE, SPARSE):
        raise BadOption(f"there is no attention {attention[:80]!r}", hint=f"{DENSE} or {SPARSE}")
    if variant is not None and attention == DENSE:
        raise BadOption("variants are of sparse attention", hint=f"add --attention {SPARSE}")


def engine_attending(name: str, checkpoint: Checkpoint, attention: str | None, variant: str | None) -> Runtime:
    """The engine called `name` (`quantkit.verification.engines.choose_engine`) that attends to an artifact as told.

    attention: None = as the container attends by itself, or sparsely where a variant is named.

    Raises:
        BadOption: an unknown attention or variant, or an engine that attends otherwise.
        UnsupportedModel: sparse attention of a model without `sparse_config`.
        What `choose_engine` raises.
    """
    checked_attention(attention, variant)
    name = engine_name(name)
    own = checkpoint.attention
    wanted = attention or (SPARSE if variant is not None else own)
    if own == SPARSE and wanted == DENSE:
        raise BadOption(f"{checkpoint.path} attends sparsely by itself", hint=f"leave --attention {DENSE} out")
    if wanted == DENSE:
        return choose_engine(name, checkpoint)
    runtime: Runtime = sparse_oracle(variant)
    if own == SPARSE and variant is None and name != ORACLE:
        runtime = choose_engine(name, checkpoint)
        return runtime if runtime.name != ORACLE else sparse_oracle()
    if name not in ("auto", ORACLE):
        raise BadOption(
            f"{name} attends densely to {checkpoint.format}", hint=f"--engine {ORACLE}, or leave --attention out"
        )
    refusal = runtime.refuses(checkpoint)
    if refusal is not None:
        raise UnsupportedModel(f"{checkpoint.path}: {refusal}", hint="leave --attention out")
    return runtime


def sparse_oracle(variant: str | None = None) -> SparseOracle:
    """The sparse reference as the code `variant` computes, None = the default; raises `BadOption` for another word."""
    return cast(SparseOracle, registry.runtime(ORACLE)).sparsely(variant)
