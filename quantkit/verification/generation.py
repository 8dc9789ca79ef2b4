"""Token generation over any session: the engine computes logits, the sampling is the same everywhere."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from quantkit.errors import BadOption, NonFiniteValues
from quantkit.protocols import Session
from quantkit.verification.metrics import log_softmax


def generated_tokens(
    session: Session,
    token_ids: Sequence[int],
    *,
    max_tokens: int,
    eos_token_ids: Collection[int],
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[int]:
    """Yield the tokens that continue `token_ids`, one at a time; an end-of-sequence token ends it and is not yielded.

    Args:
        session: computes the logits.
        token_ids: the prompt, not empty.
        max_tokens: at most so many are yielded.
        eos_token_ids: tokens that end the text.
        temperature: 0 takes the most likely token (the lowest id among equals); else logits are divided by it.
        top_p: sample among the fewest tokens, most likely first, that together reach this share of probability.
        seed: of the random numbers; the same seed and logits give the same tokens.

    Raises:
        BadOption: an option outside its range.
        NonFiniteValues: the engine computed NaN.
    """
    if not token_ids:
        raise BadOption("the prompt has no tokens")
    if not 0 <= temperature < np.inf or not 0 < top_p <= 1:
        raise BadOption(f"temperature must be 0 or more and top_p in (0, 1], are {temperature:g} and {top_p:g}")
    rng = np.random.default_rng(seed)
    sequence = list(token_ids)
    for _ in range(max_tokens):
        token = choose(session.next_logits(sequence), rng, temperature=temperature, top_p=top_p)
        if token in eos_token_ids:
            return
        yield token
        sequence.append(token)


def choose(logits: np.ndarray, rng: np.random.Generator, *, temperature: float, top_p: float) -> int:
    """One token id by logits [V]: the most likely at temperature 0, else sampled (nucleus sampling, Holtzman 2020)."""
    if np.isnan(logits).any():
        raise NonFiniteValues("the engine computed NaN logits", hint="verify the artifact: quantkit verify")
    if temperature == 0:
        return int(logits.argmax())
    # Subtracting the maximum first keeps a tiny temperature from overflowing.
    shares = np.exp(log_softmax((logits.astype(np.float64) - logits.max()) / temperature))
    order = np.argsort(-shares, kind="stable")  # ties by id, so that the choice does not depend on the sort
    cumulative = np.cumsum(shares[order])
    kept = int(np.searchsorted(cumulative, top_p * cumulative[-1])) + 1
    drawn = rng.random() * cumulative[kept - 1]
    return int(order[np.searchsorted(cumulative, drawn, side="right")])
