"""Where an engine leaves the reference: the first token, and the stage where the engine shows its stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from quantkit import registry
from quantkit.models.checkpoint import Checkpoint
from quantkit.verification.golden import Golden
from quantkit.verification.prompts import Prompt
from quantkit.verification.proof import verify
from quantkit.verification.recording import recorded
from quantkit.verification.steps.tracing import first_position
from tests.support.tiny import write_tiny_checkpoint

PROMPTS = (Prompt("short", "", (1, 5, 9)), Prompt("longer", "", tuple(range(1, 40))))


class WrongSession:
    """The reference's session, wrong from token 20 on, and in its trace from block 1 on."""

    def __init__(self, path: Path) -> None:
        self._session = registry.runtime("reference").open(path)

    def __enter__(self) -> WrongSession:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def logits(self, token_ids: Sequence[int]) -> np.ndarray:
        logits = self._session.logits(token_ids).copy()
        logits[20:, 7] += 1
        return logits

    def next_logits(self, token_ids: Sequence[int]) -> np.ndarray:
        return self.logits(token_ids)[-1]

    def trace(self, token_ids: Sequence[int]) -> Mapping[str, np.ndarray]:
        stages = dict(self._session.trace(token_ids))
        for name in ("block 1", "final norm"):
            stages[name] = stages[name] * np.float32(1.5)
        return stages


class WrongEngine:
    name = "wrong"
    summary = "computes something else"

    def arithmetic(self, checkpoint: Checkpoint) -> str:
        return "float32"

    def refuses(self, checkpoint: Checkpoint) -> None:
        return None

    def open(self, path: Path) -> WrongSession:
        return WrongSession(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("divergence") / "tiny")


@pytest.fixture(scope="module")
def golden(model) -> Golden:
    return recorded(registry.open_checkpoint(model), PROMPTS)


def test_an_engine_that_diverges_is_located(model, golden, monkeypatch):
    monkeypatch.setattr("quantkit.verification.engines.choose_engine", lambda *_: WrongEngine())
    monkeypatch.setattr("quantkit.verification.proof.engine_name", lambda name, *_: name)
    report = verify(model, golden=golden, engine="wrong", needs_manifest=False)
    assert report.failed is not None
    assert report.failed.name == "engine"
    found = report.divergence
    assert found is not None
    assert (found.of, found.from_, found.prompt, found.position, found.stage) == (
        "wrong",
        "reference",
        "longer",
        20,
        "block 1",
    )
    assert any("from token 20 on, first in block 1" in line for line in report.lines())


def test_the_first_position_is_the_first_beyond_the_limit_else_the_worst():
    trusted = np.zeros((4, 3), np.float32)
    tested = trusted.copy()
    tested[1, 0], tested[2, 0] = 0.1, 1.0
    assert first_position(trusted, tested, 1e-5) == 1
    assert first_position(trusted, tested, 0.1) == 2
    assert first_position(trusted, tested, 10.0) == 2
    tested[3, 0] = np.nan
    assert first_position(trusted, tested, 10.0) == 3
