"""Every seeded fault, in the order of the table."""

from __future__ import annotations

from benchmarks.faults import codes, containers, engine, files, provenance, scalars, tokenizer, tokens, weights
from benchmarks.faults.fault import Fault

FAULTS: tuple[Fault, ...] = (
    *files.FAULTS,
    *provenance.FAULTS,
    *scalars.FAULTS,
    *tokens.FAULTS,
    *tokenizer.FAULTS,
    *containers.FAULTS,
    *weights.FAULTS,
    *codes.FAULTS,
    *engine.FAULTS,
)
