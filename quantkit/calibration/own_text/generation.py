"""Calibration text that the model writes itself: no data needed, and the distribution is the model's own.

Every sequence begins with one of the bundled openings and goes on by sampling. Where the model runs into a loop, the
next opening of the same kind follows, as documents follow each other in training. An end-of-text token does not end a
sequence: what the model begins after it is its text as well, and serves better than another opening.

Sequences are generated in batches whose size their number decides, each on one thread, and every sequence draws from
a random generator of its own, so that the thread count changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from threading import Lock

import numpy as np
import torch
from torch.nn import functional

from quantkit.calibration.own_text.generation_work import batch_size, generation_work, steps_work
from quantkit.calibration.own_text.prompts import Prompts, prompts_digest, read_prompts
from quantkit.calibration.own_text.repetition import LoopWatch, repeated_tokens
from quantkit.calibration.samples import CalibrationOptions
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.loading import CPU, load_model
from quantkit.models.spec import ModelSpec
from quantkit.models.torch_model import MiniCPM
from quantkit.progress import Progress
from quantkit.text.tokenizer import Tokenizer
from quantkit.threads import torch_map

DRAWN = "drawn"
"""The kind of sequences that begin with a token drawn at random, for want of a tokenizer."""
LEAST_SHARE = 1e-4
"""Tokens are drawn among those with at least this share of the likeliest one's probability."""
STRETCH = 512
"""Tokens of the vocabulary whose probabilities are added up first."""


@dataclass(frozen=True, slots=True, eq=False)
class OwnText:
    """Sequences that the model wrote: arrays int64 [tokens], and of each the kind of text that its openings are.

    digest: SHA-256 of the openings. note: a line about what is not as it should be, None = nothing. tokens,
    distinct_tokens, repeated_tokens: how many there are, different ones, and in repetitions.
    """

    sequences: tuple[np.ndarray, ...]
    kinds: tuple[str, ...]
    digest: str
    note: str | None
    tokens: int
    distinct_tokens: int
    repeated_tokens: int

    def in_words(self) -> str:
        """One line that says what this text covers."""
        counts = Counter(self.kinds)
        number, several = len(self.sequences), len(counts) > 1
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
        return (
            f"own text: {number:,} sequence{'s' if number > 1 else ''} of {len(counts)} kind{'s' if several else ''} "
            f"({kinds}), {self.tokens:,} tokens, {self.distinct_tokens:,} distinct, "
            f"{100 * self.repeated_tokens / self.tokens:.1f} % in repetitions"
        )


def own_text(
    checkpoint: Checkpoint,
    tokenizer: Tokenizer | str,
    options: CalibrationOptions,
    *,
    sequences: int,
    threads: int = 1,
    device: torch.device = CPU,
    bfloat16: bool = False,
    progress: Progress | None = None,
) -> OwnText:
    """`sequences` sequences of `options.length` tokens; the whole model is on `device` meanwhile.

    Where the chat template fails, all openings are plain text, and the note says so. Where `tokenizer` is a reason why
    there is none, every text begins with a token drawn at random.

    bfloat16: compute in it, and hold the model in it: half the memory, and much faster where the CPU has instructions
    for it.

    Raises:
        MissingDependency: there is a chat template, and jinja2 is not installed.
        NonFiniteValues: a weight holds NaN or infinity.
    """
    spec, note = checkpoint.spec, None
    if isinstance(tokenizer, str):
        kinds, starts = (DRAWN,) * sequences, [_drawn_starts(spec, options.seed, i) for i in range(sequences)]
        note = f"{tokenizer}: calibration begins with tokens drawn at random instead of texts"
    else:
        prompts = read_prompts(tokenizer)
        kinds, note = tuple(islice(cycle(prompts.of_kind), sequences)), prompts.note
        starts = [_prompt_starts(prompts, i) for i in range(sequences)]
    model = load_model(checkpoint, torch.bfloat16 if bfloat16 else torch.float32).to(device)
    size = batch_size(sequences)
    work = generation_work(spec, replace(options, sequences=sequences), bfloat16=bfloat16)
    counter = _WorkCounter(spec, size, work, progress, bfloat16=bfloat16)

    def write(first: int) -> np.ndarray:
        seeds = [[options.seed, i] for i in range(first, min(first + size, sequences))]
        return _written(model, starts[first : first + size], options.length, seeds, counter)

    written = list(np.concatenate(torch_map(write, range(0, sequences, size), threads)))
    return OwnText(
        sequences=tuple(written),
        kinds=kinds,
        digest=prompts_digest(),
        note=note,
        tokens=sum(map(len, written)),
        distinct_tokens=len(np.unique(written)),
        repeated_tokens=repeated_tokens(written),
    )


def _prompt_starts(prompts: Prompts, sequence: int) -> Iterator[Sequence[int]]:
    """The openings of the texts in sequence number `sequence`: kinds take turns, and those of one kind follow."""
    kinds = tuple(prompts.of_kind)
    every = prompts.of_kind[kinds[sequence % len(kinds)]]
    first = sequence // len(kinds) % len(every)
    return cycle((*every[first:], *every[:first]))


def _drawn_starts(spec: ModelSpec, seed: int, sequence: int) -> Iterator[Sequence[int]]:
    """One token for each text, after the first token of all texts where the config names it."""
    first = [] if spec.bos_token_id is None else [spec.bos_token_id]
    random = np.random.default_rng([seed, sequence, 1])
    while True:
        yield [*first, int(random.integers(spec.vocab_size))]


class _Rows:
    """The sequences of a batch: ids [rows, length], of which so many as `known` says are there."""

    def __init__(self, starts: Sequence[Iterator[Sequence[int]]], length: int) -> None:
        self.ids = np.zeros((len(starts), length), np.int64)
        self.known = np.zeros(len(starts), np.int64)
        self._starts = starts
        self._watch = LoopWatch(len(starts))
        for row in range(len(starts)):
            self._begin(row)

    def _begin(self, row: int) -> None:
        """Let a text begin where this row has got to."""
        self._watch.begin(row, int(self.known[row]))
        start = next(self._starts[row])[: self.ids.shape[1] - self.known[row]]
        self.ids[row, self.known[row] : self.known[row] + len(start)] = start
        self.known[row] += len(start)

    def take(self, tokens: np.ndarray, position: int) -> None:
        """Go on with tokens [rows] at `position`, but for rows whose openings reach further."""
        open_rows = self.known == position
        self.ids[open_rows, position] = tokens[open_rows]
        self.known[open_rows] += 1
        looping = self._watch.look(self.ids, position)
        for row in np.flatnonzero(looping & open_rows):
            self._begin(int(row))


def _written(
    model: MiniCPM,
    starts: Sequence[Iterator[Sequence[int]]],
    length: int,
    seeds: Sequence[Sequence[int]],
    counter: _WorkCounter,
) -> np.ndarray:
    """Token ids [len(starts), length]; all rows advance together, one position at a time."""
    uniform = np.array([np.random.default_rng(seed).random(length) for seed in seeds])
    rows = _Rows(starts, length)
    device = model.model.embed_tokens.weight.device
    cache = model.cache(len(starts), length)
    done, position = 0, int(rows.known.min())
    while position < length:
        states = model.states(torch.from_numpy(rows.ids[:, done:position]).to(device), cache)
        rows.take(drawn_tokens(model.head(states[:, -1]), uniform[:, position]), position)
        counter.add(done, position)
        done, position = position, position + 1
    counter.add(done, length)
    return rows.ids


def drawn_tokens(logits: torch.Tensor, uniform: np.ndarray) -> np.ndarray:
    """One token per row of float32 logits [batch, vocab], drawn among the likely ones (`LEAST_SHARE`).

    The cumulative distribution of these is inverted at uniform [batch], numbers in [0, 1): first over stretches of the
    vocabulary, then inside one, so that few sums are taken in float64. Overwrites `logits`.
    """
    shares = logits.sub_(logits.amax(dim=-1, keepdim=True)).exp_()
    weights = functional.threshold(shares, LEAST_SHARE, 0.0, inplace=True)
    batch, vocabulary = weights.shape
    whole = vocabulary // STRETCH * STRETCH
    sums = weights[:, :whole].view(batch, -1, STRETCH).sum(dim=-1)
    sums = torch.cat((sums, weights[:, whole:].sum(dim=-1, keepdim=True)), dim=1)
    cumulative = sums.cpu().numpy().astype(np.float64).cumsum(axis=1)
    points = np.minimum(uniform * cumulative[:, -1], np.nextafter(cumulative[:, -1], 0.0))
    tokens = np.empty(batch, np.int64)
    for row, point in enumerate(points):
        stretch = int(np.searchsorted(cumulative[row], point, side="right"))
        before = cumulative[row, stretch - 1] if stretch else 0.0
        inside = weights[row, stretch * STRETCH : (stretch + 1) * STRETCH].cpu().numpy()
        summed = inside.astype(np.float64).cumsum()
        place = int(np.searchsorted(summed, point - before, side="right"))
        tokens[row] = stretch * STRETCH + min(place, int(np.flatnonzero(inside)[-1]))
    return tokens


class _WorkCounter:
    """Adds up what several threads have done and tells `progress`."""

    def __init__(self, spec: ModelSpec, batch: int, total: float, progress: Progress | None, *, bfloat16: bool) -> None:
        self.spec = spec
        self.batch = batch
        self.total = total
        self.progress = progress
        self.bfloat16 = bfloat16
        self.done = 0.0
        self.lock = Lock()

    def add(self, start: int, stop: int) -> None:
        """A batch has gone from position `start` to `stop`."""
        with self.lock:
            self.done += steps_work(self.spec, self.batch, start, stop, bfloat16=self.bfloat16)
            if self.progress is not None:
                self.progress("generating calibration text", self.done, self.total)
