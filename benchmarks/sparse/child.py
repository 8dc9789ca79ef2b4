"""One measurement of `benchmarks/sparse_scaling.py`; prints JSON.

    python -m benchmarks.sparse.child attention RUNTIME LENGTH [--kinds dense sparse] [--runs 4]
    python -m benchmarks.sparse.child model RUNTIME LENGTH [--kinds dense sparse]

`prefill` and `decode` are seconds of processor a token by kind. The kinds take turns, token by token and
run by run. Of a long prompt `--runs` stretches of `RUN` tokens are read, each in the middle of its share of the
prompt, and what lies between them is only remembered. A decoded token is the fastest of `DECODED`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.sparse.attention import ATTENTIONS, GROUPS, HEAD_DIM, HEADS, Attention
from benchmarks.sparse.model import MODELS, VOCABULARY

RUN = 2048
DECODED = 40
FILLED = 8192
Figures = dict[str, dict[str, float]]


class Tokens:
    """Random queries, keys and values, the same for every kind."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(0)

    def keys(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Keys and values of the next tokens."""
        k, v = self._random.standard_normal((2, GROUPS, count, HEAD_DIM), np.float32)
        return k, v

    def queries(self, count: int) -> np.ndarray:
        """Their queries."""
        return self._random.standard_normal((HEADS, count, HEAD_DIM), np.float32)


def attention(runtime: str, length: int, kinds: Sequence[str], runs: int) -> Figures:
    """A prompt of `length` and tokens behind it, through one layer's attention."""
    tokens = Tokens()
    found: dict[str, Attention] = {kind: ATTENTIONS[runtime][kind](length + DECODED) for kind in kinds}
    prefill, done = dict.fromkeys(kinds, 0.0), 0
    count = min(runs, length // RUN)
    for number in range(count):
        start = number * length // count + (length // count - RUN) // 2
        fill(found, tokens, start - done)
        q, (k, v), done = tokens.queries(RUN), tokens.keys(RUN), start + RUN
        for kind, one in found.items():
            prefill[kind] += seconds(lambda one=one, given=(q, k, v, length): one.read(*given))
    fill(found, tokens, length - done)
    decode: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(DECODED):
        q, (k, v) = tokens.queries(1), tokens.keys(1)
        for kind, one in found.items():
            decode[kind].append(seconds(lambda one=one, given=(q, k, v): one.decode(*given)))
    return {
        "prefill": {kind: spent / (count * RUN) for kind, spent in prefill.items()} if count else {},
        "decode": {kind: min(spent) for kind, spent in decode.items()},
    }


def fill(found: dict[str, Attention], tokens: Tokens, count: int) -> None:
    """So many tokens that nobody asks about, a few at a time."""
    while count > 0:
        k, v = tokens.keys(min(count, FILLED))
        for one in found.values():
            one.fill(k, v)
        count -= FILLED


def model(runtime: str, length: int, kinds: Sequence[str], runs: int) -> Figures:
    """A prompt of `length` and tokens behind it, from ids to logits."""
    ids = np.random.default_rng(0).integers(0, VOCABULARY, length + DECODED).tolist()
    steps = {kind: MODELS[runtime][kind]() for kind in kinds}
    prefill = {kind: seconds(lambda step=step: step(ids[:length])) / length for kind, step in steps.items()}
    decode: dict[str, list[float]] = {kind: [] for kind in kinds}
    for end in range(length + 1, length + DECODED + 1):
        for kind, step in steps.items():
            decode[kind].append(seconds(lambda step=step, seen=ids[:end]: step(seen)))
    return {"prefill": prefill, "decode": {kind: min(spent) for kind, spent in decode.items()}}


def seconds(call: Callable[[], object]) -> float:
    """Of processor that a call takes."""
    start = time.process_time()
    call()
    return time.process_time() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("attention", "model"))
    parser.add_argument("runtime", choices=tuple(ATTENTIONS))
    parser.add_argument("length", type=int)
    parser.add_argument("--kinds", nargs="+", choices=("dense", "sparse"), default=("dense", "sparse"))
    parser.add_argument("--runs", type=int, default=4)
    options = parser.parse_args()
    measure = {"attention": attention, "model": model}[options.what]
    print(json.dumps(measure(options.runtime, options.length, options.kinds, options.runs)))


if __name__ == "__main__":
    main()
