"""A GGUF file in the server of `xllamacpp`, for releases whose C API is not known.

The package gives the log-probs of one generated token at a time, so `logits` asks for every prefix in turn; the
engine keeps its keys and values between the questions, and evaluates one token per question. Most of the time goes
into the JSON that carries the rows: its cost grows with the vocabulary.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from quantkit.errors import EngineFailed
from quantkit.models.spec import ModelSpec
from quantkit.runtimes._engine_process import EngineSession
from quantkit.runtimes.llama_cpp.allowances import evaluating, loading, tokenizing
from quantkit.runtimes.llama_cpp.child import Child, threads_for
from quantkit.runtimes.llama_cpp.context import context_size

SMALLEST_CONTEXT = 4096
"""Tokens of context that the engine starts with; it is started anew for every other size."""
CANDIDATES = 4096
"""Log-probs asked for when text is generated: all of a small vocabulary, and more of a large one than a sampler needs
(73 448 of them take 0.7 s per token to pass through JSON)."""
SERVE = "from quantkit.runtimes.llama_cpp.server import main; main()"
"""What the child runs."""


class ServerChild(Child):
    """A child with a folder of its own for the server's socket, loaded with a context of `n_ctx` tokens."""

    def __init__(self, path: Path, spec: ModelSpec, n_ctx: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="quantkit-")
        super().__init__(path, SERVE)
        try:
            threads, folder = threads_for(path), self._folder.name
            self.ask(loading(path, spec, n_ctx), do="load", path=str(path), n_ctx=n_ctx, threads=threads, folder=folder)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the process and remove its folder; safe to call twice."""
        super().close()
        self._folder.cleanup()


class ServerSession(EngineSession):
    """A GGUF file in llama.cpp. `spec` tells its context length; the file should have been read strictly before."""

    def __init__(self, path: Path, spec: ModelSpec) -> None:
        self._path = path
        self._spec = spec
        self._n_ctx = self._context(1)
        self._child = ServerChild(path, spec, self._n_ctx)

    def logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """Log-probs in float32 [T, V], one engine step per row; row t predicts token t + 1."""
        self._fit(len(token_ids))
        size = self._spec.vocab_size
        return np.stack([self._row(token_ids[: stop + 1], size) for stop in range(len(token_ids))])

    def next_logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """The last row of `logits`, [V], for the `CANDIDATES` most likely tokens; the others are -inf."""
        self._fit(len(token_ids))
        return self._row(token_ids, min(CANDIDATES, self._spec.vocab_size))

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of `text` by the vocabulary inside the file.

        add_special: put the beginning-of-sequence token first, if the file says so.
        parse_special: read `<|im_start|>` and the like as the tokens they name, not as text.
        """
        allowance = tokenizing(self._path, self._spec, self._n_ctx, text)
        answer, _ = self._child.ask(
            allowance, do="tokenize", text=text, add_special=add_special, parse_special=parse_special
        )
        tokens: list[int] = answer["token_ids"]
        return tokens

    def _row(self, token_ids: Sequence[int], count: int) -> np.ndarray:
        ids, size = [int(token) for token in token_ids], self._spec.vocab_size
        # One more than there should be, so that a larger vocabulary inside the file is noticed.
        allowance = evaluating(self._path, self._spec, self._n_ctx, len(ids))
        answer, data = self._child.ask(allowance, do="row", token_ids=ids, count=count + (count == size), size=size)
        row = np.frombuffer(data, np.float32)
        if answer["entries"] != count or np.isnan(row).any():
            raise EngineFailed(f"{self._path}: llama.cpp gave {answer['entries']} log-probs in place of {count}")
        return row

    def _fit(self, length: int) -> None:
        """Start the engine anew if `length` tokens need more context, or other LongRoPE factors, than it has."""
        needed, rope = self._context(length), self._spec.rope
        if needed <= self._n_ctx and rope.turns_alike(needed, self._n_ctx):
            return
        self._child.close()
        self._n_ctx = needed
        self._child = ServerChild(self._path, self._spec, needed)

    def _context(self, length: int) -> int:
        """Context for `length` tokens and the one that the server samples."""
        return context_size(self._path, self._spec, length, smallest=SMALLEST_CONTEXT, spare=1)
