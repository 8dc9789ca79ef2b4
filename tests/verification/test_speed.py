"""Timing an artifact: the arithmetic on a clock of ours, and a true run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from quantkit.cli.app import main
from quantkit.errors import BadOption
from quantkit.verification import speed
from quantkit.verification.speed import bench


class Clock:
    """Seconds that pass only when a session computes."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Session:
    """Takes 2 s to open, 0.1 s for every token of a prompt, 0.5 s for each behind it; the first round twice that."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self.prompts, self.known = clock, [], 0
        clock.now += 2.0

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    def next_logits(self, token_ids: Sequence[int]) -> np.ndarray:
        prompt = len(token_ids) == 10
        if prompt:
            self.prompts.append(list(token_ids))
        cost = 0.1 * len(token_ids) if prompt else 0.5
        self._clock.now += cost * (2 if len(self.prompts) == 1 else 1)
        return np.arange(5, dtype=np.float32)


def test_rates_are_tokens_by_seconds_and_the_first_round_does_not_count(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, opened = Clock(), []

    def open_session(_: Path) -> Session:
        opened.append(Session(clock))
        return opened[-1]

    def own_speed(_: Path, prompt_tokens: int, decode_tokens: int, rounds: int) -> tuple[str, float, float]:
        return "its tool", float(prompt_tokens), float(decode_tokens * rounds)

    runtime: Any = SimpleNamespace(name="fake", open=open_session, own_speed=own_speed)
    monkeypatch.setattr(speed, "choose_engine", lambda *_: runtime)
    found = bench(tiny_checkpoint, prompt_tokens=10, decode_tokens=4, rounds=3, clock=clock)
    assert found.load_seconds == 2.0
    assert found.prompt_rates == pytest.approx((10.0,) * 3)
    assert found.decode_rates == pytest.approx((2.0,) * 3)
    assert found.own_tool == ("its tool", 10.0, 12.0)
    (session,) = opened
    assert session.closed
    assert len({tuple(prompt) for prompt in session.prompts}) == 4, "no prompt may be found in a cache"


def test_a_true_run_as_a_table_and_as_json(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", str(tiny_checkpoint), "--engine", "reference", "--prompt-tokens", "4", "--decode-tokens", "2"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "hf in reference, loaded in" in text
    assert "decode tokens/s" in text
    assert main([*command, "--rounds", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["engine"] == "reference"
    assert len(found["prompt_rates"]) == 2
    assert found["decode_rate"] == pytest.approx(sum(found["decode_rates"]) / 2)
    assert found["peak_memory"] > 20e6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, "rounds must be 1 or more, is 0"),
        ({"rounds": 2000}, "rounds must be at most 1,000, are 2,000"),
        ({"prompt_tokens": 10_000_000}, "exceeds the model.s context"),
        ({"engine": "llama-cpp"}, "llama-cpp does not load hf"),
    ],
)
def test_what_cannot_be_timed_is_refused(tiny_checkpoint: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadOption, match=message):
        bench(tiny_checkpoint, **changes)
