"""A decoder graph in ONNX as quantkit and others lay it out, fed with token ids and what it remembers of those before.

Inputs `input_ids` and `attention_mask`, int64 [1, T] and [1, P + T], `position_ids` like the first where there are
such, and per block `past_key_values.N.key` and `.value` [1, G, P, D]; outputs `logits` [1, T, V], `present.N.key` and
`.value` [1, G, P + T, D]. Values on the way are called as the stages of a trace.

It does not know who computes: that is `run`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile

import numpy as np

from quantkit.errors import EngineFailed
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import ModelSpec

Run = Callable[[Mapping[str, np.ndarray], Sequence[str]], Mapping[str, np.ndarray]]
"""Takes the inputs by name, and names of values; returns these."""

IDS, MASK, POSITIONS, LOGITS = "input_ids", "attention_mask", "position_ids", "logits"
EMBEDDING, BLOCK, NORM = "embedding", "block {}", "final norm"


def arithmetic_of(checkpoint: Checkpoint) -> str:
    """What a graph is computed in, as its config.json tells: "float32" or "float16"."""
    return "float16" if checkpoint.config.get("torch_dtype") == "float16" else "float32"


def step_of(spec: ModelSpec, tokens: int, step: int) -> int:
    """How many of `tokens` tokens are computed at a time: `step`, or all where RoPE turns the first ones otherwise.

    A graph chooses among LongRoPE's factors by the tokens that it has so far, the model by all of them.
    """
    return step if spec.rope.turns_alike(step, tokens) else tokens


def stage_names(blocks: int) -> list[str]:
    """Names of the stages of a trace but the logits, in order."""
    return [EMBEDDING, *(BLOCK.format(block) for block in range(blocks)), NORM]


class CachedDecoder:
    """A graph with a cache that is fed back.

    Args:
        run: computes.
        inputs: the graph's inputs, names to dtypes.
        blocks, groups, width: how many blocks, key/value heads of each, and channels of those.

    Raises:
        EngineFailed: the graph has other inputs.
    """

    def __init__(self, run: Run, inputs: Mapping[str, np.dtype], *, blocks: int, groups: int, width: int) -> None:
        self._run = run
        self._pairs = [(block, part) for block in range(blocks) for part in ("key", "value")]
        self._past_names = [f"past_key_values.{block}.{part}" for block, part in self._pairs]
        self._present_names = [f"present.{block}.{part}" for block, part in self._pairs]
        self._positions = POSITIONS in inputs
        wanted = {IDS, MASK, *self._past_names}
        odd = sorted((set(inputs) ^ wanted) - {POSITIONS})
        if odd:
            raise EngineFailed(f"the graph {'has an' if odd[0] in inputs else 'lacks the'} input {odd[0]!r}")
        self._nothing = [np.empty((1, groups, 0, width), inputs[name]) for name in self._past_names]
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self._ids: list[int] = []
        self._past = self._nothing

    def logits(self, token_ids: list[int], step: int) -> np.ndarray:
        """Rows [T, V] of a sequence, `step` tokens at a time; nothing of it is remembered."""
        self.forget()
        parts = [self._extend(token_ids[at : at + step]) for at in range(0, len(token_ids), step)]
        self.forget()
        return np.concatenate(parts)

    def next(self, token_ids: list[int], step: int) -> np.ndarray:
        """The row [1, V] of the last token; what is remembered of the others is not computed again."""
        pairs = zip(self._ids, token_ids[:-1], strict=False)
        known = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if known < len(self._ids):  # being causal, keys and values do not depend on what followed
            self._ids, self._past = self._ids[:known], [past[:, :, :known] for past in self._past]
        row = np.empty(0, np.float32)
        for at in range(known, len(token_ids), step):
            row = self._extend(token_ids[at : at + step])[-1:]
        return row

    def trace(self, token_ids: list[int], stages: Sequence[str]) -> dict[str, np.ndarray]:
        """Values of `stages` and the logits, [T, ?] each, of a sequence computed at once."""
        self.forget()
        found = self._run(self._feeds(token_ids), [*stages, LOGITS])
        return {name: checked_rows(name, found[name], len(token_ids)) for name in (*stages, LOGITS)}

    def _extend(self, token_ids: list[int]) -> np.ndarray:
        found = self._run(self._feeds(token_ids), [LOGITS, *self._present_names])
        rows = checked_rows(LOGITS, found[LOGITS], len(token_ids))
        total = len(self._ids) + len(token_ids)
        past = [found[name] for name in self._present_names]
        for name, value, empty in zip(self._present_names, past, self._nothing, strict=True):
            if value.dtype != empty.dtype or value.shape != (*empty.shape[:2], total, empty.shape[3]):
                raise EngineFailed(f"the graph's output {name!r} is {value.dtype} {list(value.shape)}")
        self._past, self._ids = past, self._ids + token_ids
        return rows

    def _feeds(self, token_ids: list[int]) -> dict[str, np.ndarray]:
        known = len(self._ids)
        feeds = {IDS: np.array([token_ids], np.int64), MASK: np.ones((1, known + len(token_ids)), np.int64)}
        if self._positions:
            feeds[POSITIONS] = np.arange(known, known + len(token_ids), dtype=np.int64)[None]
        return feeds | dict(zip(self._past_names, self._past, strict=True))


def checked_rows(name: str, value: np.ndarray, tokens: int) -> np.ndarray:
    """[1, T, ?] as float32 [T, ?]; raises `EngineFailed` for another shape."""
    if value.ndim != 3 or value.shape[:2] != (1, tokens):
        raise EngineFailed(f"the graph's value {name!r} has the shape {list(value.shape)}")
    rows: np.ndarray = value[0].astype(np.float32, copy=False)
    return rows
