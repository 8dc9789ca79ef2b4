"""A decoder graph that attends sparsely, fed with token ids and buffers of what it remembers of those before.

Inputs are `input_ids` int64 [1, T], `past_length` and `prompt_length` int64 [1], and `past_key_values.N.PART` of each
block, buffers: `key` and `value` [G, C, D], `fine` [G, C / stride, D], `coarse` [G, C / (4 * stride) rounded up, D]. It
puts out `logits` [1, T, V] and `present.N.PART`, which may be the same buffers. C is a multiple of the size of a block.

Tokens are read as `quantkit.runtimes.reference.sparse.session` reads them: `logits` takes one prompt, `next` decodes a
single token that follows those of the call before, and reads several as the end of a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from quantkit.errors import EngineFailed
from quantkit.models.spec import COARSE
from quantkit.runtimes._cached_decoder import IDS, LOGITS, checked_rows

PAST_LENGTH, PROMPT_LENGTH = "past_length", "prompt_length"
PARTS = ("key", "value", "fine", "coarse")
SMALLEST = 256
"""Tokens that there is room for from the start."""

Buffers = dict[str, np.ndarray]
"""What is remembered, by the names of the graph's inputs."""
Run = Callable[[Mapping[str, np.ndarray], Buffers, Sequence[str]], Mapping[str, np.ndarray]]
"""Takes the other inputs by name, the buffers, and names of values; writes into the buffers, or puts others there."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """blocks, groups, width: of a decoder: blocks, key/value heads of each, channels of those.

    block_size, stride: tokens that are chosen together, and from one mean of keys to the next.
    """

    blocks: int
    groups: int
    width: int
    block_size: int
    stride: int

    def rows(self, tokens: int) -> Mapping[str, int]:
        """Rows of each part's buffer with room for so many tokens."""
        room = tokens + -tokens % self.block_size
        return dict(zip(PARTS, (room, room, room // self.stride, -(-room // (COARSE * self.stride))), strict=True))


@dataclass(slots=True)
class _Text:
    """What is remembered: of which tokens, for how many there is room, and the buffers."""

    ids: list[int] = field(default_factory=list)
    room: int = 0
    buffers: Buffers = field(default_factory=dict)


class SparseDecoder:
    """A graph with buffers that grow.

    Args:
        run: computes.
        inputs: the graph's inputs, names to dtypes.
        sizes: of what it remembers.

    Raises:
        EngineFailed: the graph has other inputs.
    """

    def __init__(self, run: Run, inputs: Mapping[str, np.dtype], sizes: Sizes) -> None:
        self._run, self._sizes = run, sizes
        self._names = {f"past_key_values.{n}.{part}": part for n in range(sizes.blocks) for part in PARTS}
        odd = sorted(set(inputs) ^ {IDS, PAST_LENGTH, PROMPT_LENGTH, *self._names})
        if odd:
            raise EngineFailed(f"the graph {'has an' if odd[0] in inputs else 'lacks the'} input {odd[0]!r}")
        self._dtypes = {name: inputs[name] for name in self._names}
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self._text = _Text()

    def logits(self, token_ids: list[int], step: int) -> np.ndarray:
        """Rows [T, V] of a prompt, `step` tokens at a time; nothing of it is remembered, nor is anything forgotten."""
        return np.concatenate(self._read(_Text(), token_ids, step, prompt=len(token_ids)))

    def next(self, token_ids: list[int], step: int) -> np.ndarray:
        """The row [1, V] of the last token; ids that do not begin with those of the last call are read anew."""
        known = len(self._text.ids)
        if not (known < len(token_ids) and token_ids[:known] == self._text.ids):
            self.forget()
            known = 0
        new, text = token_ids[known:], self._text
        self.forget()  # until they are written into every buffer
        decoded = known > 0 and len(new) == 1
        row = self._read(text, new, step, prompt=0 if decoded else len(token_ids))[-1][-1:]
        self._text = text
        return row

    def trace(self, token_ids: list[int], stages: Sequence[str]) -> dict[str, np.ndarray]:
        """Values of `stages` and the logits, [T, ?] each, of a prompt computed at once."""
        text, names = _Text(), (*stages, LOGITS)
        self._make_room(text, len(token_ids))
        found = self._run(_feeds(text, token_ids, len(token_ids)), text.buffers, names)
        return {name: checked_rows(name, found[name], len(token_ids)) for name in names}

    def _read(self, text: _Text, token_ids: list[int], step: int, prompt: int) -> list[np.ndarray]:
        """Rows of tokens behind those of `text`, in parts. prompt: see `_feeds`."""
        self._make_room(text, len(text.ids) + len(token_ids))
        parts = []
        for at in range(0, len(token_ids), step):
            part = token_ids[at : at + step]
            found = self._run(_feeds(text, part, prompt), text.buffers, [LOGITS])
            parts.append(checked_rows(LOGITS, found[LOGITS], len(part)))
            text.ids = text.ids + part
        return parts

    def _make_room(self, text: _Text, tokens: int) -> None:
        """For so many in all: what is there is copied into buffers twice as large."""
        if tokens <= text.room:
            return
        text.room = max(tokens, 2 * text.room, SMALLEST)
        rows = self._sizes.rows(text.room)
        for name, part in self._names.items():
            buffer = np.zeros((self._sizes.groups, rows[part], self._sizes.width), self._dtypes[name])
            if name in text.buffers:
                old = text.buffers[name]
                buffer[:, : old.shape[1]] = old
            text.buffers[name] = buffer


def _feeds(text: _Text, token_ids: list[int], prompt: int) -> dict[str, np.ndarray]:
    """prompt: length of the prompt that they are a part of, 0 where they are decoded."""
    return {
        IDS: np.array([token_ids], np.int64),
        PAST_LENGTH: np.array([len(text.ids)], np.int64),
        PROMPT_LENGTH: np.array([prompt], np.int64),
    }
