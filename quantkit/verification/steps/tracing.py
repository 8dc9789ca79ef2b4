"""Where two forward passes part: the first token, and the first stage that is off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from quantkit import registry
from quantkit.errors import QuantkitError
from quantkit.protocols import OracleSession, Session, TracingSession
from quantkit.verification.engines import ORACLE
from quantkit.verification.metrics import compared
from quantkit.verification.prompts import Prompt
from quantkit.verification.report import Divergence, first_divergence

STAGE_LIMITS = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2, "quantized": 0.5}
"""Relative error from which a stage of an artifact's forward pass counts as diverged from the original's."""
ENGINE_STAGE_LIMITS = {
    "float32": 1e-3,
    "float16 inputs": 1e-2,
    "bfloat16 inputs": 5e-2,
    "float16": 5e-2,
    "int8 inputs": 0.1,
    "int8 inputs of 256": 0.15,
    "int8 tokens": 0.2,
}
"""The same of an engine's forward pass from the reference's on one artifact, by its arithmetic."""

Trace = Mapping[str, np.ndarray]


def first_position(trusted: np.ndarray, tested: np.ndarray, limit: float) -> int:
    """The first position whose KL is above `limit` or NaN, else the one where it is largest; logits [T, V]."""
    kl = [compared(trusted[t : t + 1], tested[t : t + 1])[0].kl for t in range(len(trusted))]
    return next((t for t, value in enumerate(kl) if not value <= limit), int(np.argmax(kl)))


def artifact_divergence(
    path: Path, original: Path, prompt: Prompt, position: int | None, precision: str
) -> Divergence | None:
    """Where the artifact leaves the original, both in the reference; None where it does not, or one cannot be run."""
    try:
        mine, theirs = (_oracle_trace(one, prompt.token_ids) for one in (path, original))
    except QuantkitError:
        return None
    errors = _errors(mine, theirs, rescaled=True)
    stage = first_divergence(errors, STAGE_LIMITS[precision])
    if stage is None and position is None:
        return None
    return Divergence("artifact", "original", prompt.name, position, stage, errors)


def engine_divergence(
    session: Session, path: Path, prompt: Prompt, position: int, *, engine: str, arithmetic: str
) -> Divergence:
    """Where an engine leaves the reference; the stage is named where its session has `trace`."""
    errors: Mapping[str, float] = {}
    if isinstance(session, TracingSession):
        try:
            errors = _errors(session.trace(prompt.token_ids), _oracle_trace(path, prompt.token_ids), rescaled=False)
        except QuantkitError:
            errors = {}
    stage = first_divergence(errors, ENGINE_STAGE_LIMITS[arithmetic])
    return Divergence(engine, ORACLE, prompt.name, position, stage, errors)


def _oracle_trace(path: Path, token_ids: Sequence[int]) -> Trace:
    with registry.runtime(ORACLE).open(path) as session:
        return cast(OracleSession, session).trace(token_ids)


def _errors(mine: Trace, theirs: Trace, *, rescaled: bool) -> dict[str, float]:
    """||A - c O|| / ||c O|| of every stage that both have; c is 1, or what fits best: folding scales the stream."""
    errors = {}
    for stage, expected in theirs.items():
        if stage not in mine or mine[stage].shape != expected.shape:
            continue
        wide, other = expected.astype(np.float64), mine[stage].astype(np.float64)
        power = float(np.square(wide).sum())
        fit = float((wide * other).sum()) / power if rescaled and power else 1.0
        size = np.linalg.norm(fit * wide)
        off = float(np.linalg.norm(other - fit * wide))
        errors[stage] = off / size if size else (0.0 if off == 0 else float("inf"))
    return errors
