"""How fast an engine runs an artifact: `bench`.

What is timed is what quantkit asks of every engine: `open`, and `next_logits` on a prompt and then token by token, so
that the logits' way to this process counts as well. Prompts are random ids: no engine computes faster or slower by
what a text means, and none finds a prompt of the round before in its cache.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Protocol, runtime_checkable

import numpy as np

from quantkit import registry
from quantkit.errors import BadOption
from quantkit.models.context import check_length
from quantkit.progress import Progress, unwatched
from quantkit.protocols import Session
from quantkit.verification.engines import choose_engine

MAX_ROUNDS = 1_000


@runtime_checkable
class SelfTiming(Protocol):
    """A runtime whose engine brings a benchmark of its own."""

    def own_speed(self, path: Path, prompt_tokens: int, decode_tokens: int, rounds: int) -> tuple[str, float, float]:
        """The tool's name, and what it says of the same work: prompt and decode tokens per second.

        Raises:
            EngineFailed: the tool failed, or says something else.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What was measured; rates are the medians of `rounds`.

    engine: who computed. container: what the artifact is. load_seconds: until the engine was ready. peak_memory: bytes
    resident in the largest process at the worst moment, the engine's or this one's; None where the system does not
    tell. prompt_tokens, decode_tokens: of every round. prompt_rates, decode_rates: tokens per second of every round.
    own_tool: what the engine's own benchmark says, see `SelfTiming`; None where it has none.
    """

    engine: str
    container: str
    load_seconds: float
    peak_memory: int | None
    prompt_tokens: int
    decode_tokens: int
    prompt_rates: tuple[float, ...]
    decode_rates: tuple[float, ...]
    own_tool: tuple[str, float, float] | None = None

    @property
    def prompt_rate(self) -> float:
        """Tokens of the prompt per second."""
        return median(self.prompt_rates)

    @property
    def decode_rate(self) -> float:
        """Tokens generated per second."""
        return median(self.decode_rates)

    def to_json(self) -> dict[str, Any]:
        """Everything, medians included."""
        return {**asdict(self), "prompt_rate": self.prompt_rate, "decode_rate": self.decode_rate}


def bench(
    artifact: str | Path,
    *,
    engine: str = "auto",
    prompt_tokens: int = 128,
    decode_tokens: int = 64,
    rounds: int = 3,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Speed:
    """Load an artifact in an engine and time it.

    Args:
        artifact: a model folder, a quantized folder, or a single-file artifact.
        engine: a runtime's name; "auto" = the first installed engine that runs it, else the reference.
        prompt_tokens: tokens of the prompt of every round.
        decode_tokens: tokens that are generated behind it, one at a time.
        rounds: how often both are done; one more, which is not counted, warms the engine up.
        progress: told of rounds.
        clock: seconds.

    Raises:
        BadOption: counts that mean nothing, more tokens than the model's context, or an engine that does not load this
            container.
        What `open_checkpoint`, `choose_engine` and the engine raise.
    """
    for name, count in (("prompt_tokens", prompt_tokens), ("decode_tokens", decode_tokens), ("rounds", rounds)):
        if count < 1:
            raise BadOption(f"{name} must be 1 or more, is {count}")
    if rounds > MAX_ROUNDS:
        raise BadOption(f"rounds must be at most {MAX_ROUNDS:,}, are {rounds:,}")
    path = Path(artifact)
    checkpoint = registry.open_checkpoint(path)
    check_length(checkpoint.spec, prompt_tokens, to_come=decode_tokens, what="a round")
    runtime, tell = choose_engine(engine, checkpoint), progress or unwatched
    tell(f"loading in {runtime.name}", 0, rounds + 2)
    started = clock()
    session = runtime.open(path)
    load_seconds = clock() - started
    rng, rates = np.random.default_rng(0), []
    with session:
        for number in range(rounds + 1):
            tell(f"round {number} of {rounds}" if number else "warming up", number + 1, rounds + 2)
            ids = [int(token) for token in rng.integers(0, checkpoint.spec.vocab_size, prompt_tokens)]
            rates.append(_round(session, ids, decode_tokens, clock))
    peak, own_tool = _peak_memory(), None
    if isinstance(runtime, SelfTiming):
        tell(f"the benchmark of {runtime.name} itself", rounds + 2, rounds + 2)
        own_tool = runtime.own_speed(path, prompt_tokens, decode_tokens, rounds)
    prompt_rates, decode_rates = zip(*rates[1:], strict=True)
    return Speed(
        engine=runtime.name,
        container=checkpoint.format,
        load_seconds=load_seconds,
        peak_memory=peak,
        prompt_tokens=prompt_tokens,
        decode_tokens=decode_tokens,
        prompt_rates=prompt_rates,
        decode_rates=decode_rates,
        own_tool=own_tool,
    )


def _round(session: Session, ids: list[int], decode_tokens: int, clock: Callable[[], float]) -> tuple[float, float]:
    """Tokens per second of a prompt and of what follows it, the likeliest token each time."""
    started = clock()
    token = int(session.next_logits(ids).argmax())
    read = clock()
    sequence = list(ids)
    for _ in range(decode_tokens):
        sequence.append(token)
        token = int(session.next_logits(sequence).argmax())
    return len(ids) / (read - started), decode_tokens / (clock() - read)


def _peak_memory() -> int | None:
    """Bytes resident at most in this process, or in one that it has started and that has ended."""
    try:
        import resource  # noqa: PLC0415 - not on Windows
    except ImportError:
        return None
    largest = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return largest if sys.platform == "darwin" else largest * 1024
