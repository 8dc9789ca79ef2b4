"""Calibration text that the model writes itself: no data needed, and the distribution is the model's own.

Every sequence starts with BOS and one of the bundled openings and goes on by sampling from the model's distribution.
An end-of-text token does not end a sequence: what the model writes after it is its text as well.

Sequences are generated in batches of a fixed size, each on one thread, and every sequence draws from a random
generator of its own, so that the thread count changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import resources
from threading import Lock

import numpy as np
import torch

from quantkit.calibration.generation_work import BATCH, generation_work, steps_work
from quantkit.calibration.samples import OWN_TEXT, CalibrationOptions, Samples, make_samples
from quantkit.errors import MalformedFile
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.loading import CPU, load_model
from quantkit.models.spec import ModelSpec
from quantkit.models.torch_model import Cache, MiniCPM
from quantkit.progress import Progress
from quantkit.text.tokenizer import Tokenizer
from quantkit.threads import torch_map

PROMPTS_FILE = "prompts.txt"


def generated_samples(
    checkpoint: Checkpoint,
    tokenizer: Tokenizer | str,
    options: CalibrationOptions,
    *,
    threads: int = 1,
    device: torch.device = CPU,
    progress: Progress | None = None,
) -> Samples:
    """`options.sequences` sequences of `options.length` tokens; the whole float32 model is on `device` meanwhile.

    Where the chat template fails, all openings are plain text, and the coverage's note says so. Where `tokenizer` is a
    reason why there is none, every sequence begins with a token drawn at random.
    """
    text = resources.files("quantkit.calibration").joinpath(PROMPTS_FILE).read_text(encoding="utf-8")
    note: str | None
    if isinstance(tokenizer, str):
        prompts = _drawn_starts(checkpoint.spec, options)
        note = f"{tokenizer}: calibration begins with tokens drawn at random instead of texts"
    else:
        prompts, note = _prompts(text, tokenizer)
    starts = [prompts[i % len(prompts)][: options.length] for i in range(options.sequences)]
    model = load_model(checkpoint).to(device)
    counter = _Counter(checkpoint.spec, generation_work(checkpoint.spec, options), progress)

    def generate(first: int) -> np.ndarray:
        batch = starts[first : first + BATCH]
        seeds = [[options.seed, first + i] for i in range(len(batch))]
        return _continued(model, batch, options.length, seeds, counter)

    batches = torch_map(generate, range(0, options.sequences, BATCH), threads)
    digest = hashlib.sha256(text.encode()).hexdigest()
    notes = [note] if note is not None else []
    rows = list(np.concatenate(batches))
    return make_samples(rows, source=OWN_TEXT, digest=digest, seed=options.seed, notes=notes)


def _drawn_starts(spec: ModelSpec, options: CalibrationOptions) -> list[list[int]]:
    """One token for each sequence, after the first token of all texts where the config names it."""
    first = [] if spec.bos_token_id is None else [spec.bos_token_id]
    drawn = np.random.default_rng(options.seed).integers(spec.vocab_size, size=options.sequences)
    return [[*first, int(token)] for token in drawn]


def _prompts(bundled: str, tokenizer: Tokenizer) -> tuple[list[list[int]], str | None]:
    """The bundled openings as token ids, and why none is a chat although there is a chat template.

    A line is KIND, a tab, and the text with its newlines written as \\n.
    """
    lines = [line.split("\t") for line in bundled.splitlines() if line]
    openings = [opening.replace("\\n", "\n") for _, opening in lines]
    note = None
    if tokenizer.has_chat_template:
        chats = [i for i, (kind, _) in enumerate(lines) if kind == "chat"]
        turns = [[{"role": "user", "content": openings[i]}] for i in chats]
        try:
            rendered = tokenizer.chats(turns, add_generation_prompt=True)
        except MalformedFile as failure:
            note, rendered = f"{failure}; calibration text begins with plain text alone", []
        for i, text in zip(chats, rendered, strict=False):
            openings[i] = text or openings[i]
    return [tokenizer.encode(opening) for opening in openings], note


def _continued(
    model: MiniCPM, starts: Sequence[Sequence[int]], length: int, seeds: Sequence[Sequence[int]], counter: _Counter
) -> np.ndarray:
    """Token ids [len(starts), length]: every row begins with its start and is continued by sampling.

    All rows advance together, one position at a time; where a row still has a token of its start, that is taken.
    """
    uniform = np.array([np.random.default_rng(seed).random(length) for seed in seeds])
    ids = np.zeros((len(starts), length), np.int64)
    given = np.zeros(ids.shape, bool)
    for row, start in enumerate(starts):
        ids[row, : len(start)] = start
        given[row, : len(start)] = True
    device = model.model.embed_tokens.weight.device
    cache = Cache()
    done, position = 0, min(map(len, starts))
    while position < length:
        logits = model(torch.from_numpy(ids[:, done:position]).to(device), cache)[:, -1]
        sampled = _sampled(logits, uniform[:, position])
        ids[:, position] = np.where(given[:, position], ids[:, position], sampled)
        counter.add(done, position)
        done, position = position, position + 1
    counter.add(done, length)
    return ids


def _sampled(logits: torch.Tensor, uniform: np.ndarray) -> np.ndarray:
    """One token per row of logits [batch, vocab], by inverting the cumulative distribution in float64."""
    cumulative = torch.softmax(logits.double(), dim=-1).cumsum(dim=-1)
    points = torch.from_numpy(uniform).to(cumulative.device)[:, None] * cumulative[:, -1:]
    tokens: np.ndarray = (
        torch.searchsorted(cumulative, points, right=True)[:, 0].clamp_(max=logits.shape[1] - 1).cpu().numpy()
    )
    return tokens


class _Counter:
    """Adds up what several threads have done and tells `progress`."""

    def __init__(self, spec: ModelSpec, total: float, progress: Progress | None) -> None:
        self.spec = spec
        self.total = total
        self.progress = progress
        self.done = 0.0
        self.lock = Lock()

    def add(self, start: int, stop: int) -> None:
        """A batch has gone from position `start` to `stop`."""
        with self.lock:
            self.done += steps_work(self.spec, start, stop)
            if self.progress is not None:
                self.progress("generating calibration text", self.done, self.total)
