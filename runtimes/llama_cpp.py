"""llama.cpp, through the `xllamacpp` package.

The engine runs in a child process (`_llama_cpp_server.py`): it is C++ that parses files and may abort on them, it
logs to file descriptors, and its memory comes back for certain only when its process ends. The child costs about
0.2 s to start.

The package gives the log-probs of one generated token at a time, so `logits` asks for every prefix in turn; the
engine keeps its keys and values between the questions, and evaluates one token per question. Most of the time goes
into the JSON that carries the rows: its cost grows with the vocabulary.

Keys and values are kept in float32 and flash attention is off: with float32 weights llama.cpp then agrees with the
reference runtime to 3e-6, where its defaults (float16 keys and values) differ by 3e-4
(`tests/runtimes/test_llama_cpp.py`).

LongRoPE: llama.cpp chooses the short or the long factors once, by the size of the context it was started with, not by
the sequence at hand. The session therefore starts the engine with a context on the right side of the original one, and
starts it anew when a sequence crosses over.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from quantkit import registry
from quantkit.errors import BadOption, EngineFailed, MissingDependency
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.precision import QUANTIZED, precision_of
from quantkit.models.spec import ModelSpec
from quantkit.runtimes._engine_process import EngineProcess

if TYPE_CHECKING:
    from typing_extensions import Self

CONTEXT = 4096
"""Tokens of context that the engine starts with, where the model has so many."""
CANDIDATES = 4096
"""Log-probs asked for when text is generated: all of a small vocabulary, and more of a large one than a sampler needs
(73 448 of them take 0.7 s per token to pass through JSON)."""
SMALL_FILE = 256 << 20
"""Bytes below which one thread is fastest: on smaller models threads mostly wait for each other."""

_CHILD = """import json, sys
sys.path[:] = json.loads(sys.argv[1])
from quantkit.runtimes._llama_cpp_server import serve
serve()"""


class Child(EngineProcess):
    """The process that holds the engine, with a folder of its own for the engine's socket."""

    def __init__(self, path: Path, n_ctx: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="quantkit-")
        command = [sys.executable, "-I", "-c", _CHILD, json.dumps(sys.path)]
        super().__init__(command, engine="llama.cpp", path=path, reason=_loading_error)
        try:
            threads = 1 if path.stat().st_size < SMALL_FILE else os.cpu_count() or 1
            self.ask(do="load", path=str(path), n_ctx=n_ctx, threads=threads, folder=self._folder.name)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the process and remove its folder; safe to call twice."""
        super().close()
        self._folder.cleanup()


def _loading_error(log: Sequence[str]) -> str | None:
    """Why the engine refused the file, in its own words."""
    marker = "error loading model: "
    return next((line.partition(marker)[2] for line in log if marker in line), None)


class LlamaCppSession:
    """A GGUF file in llama.cpp. `spec` tells its context length; the file should have been read strictly before."""

    def __init__(self, path: Path, spec: ModelSpec) -> None:
        self._path = path
        self._spec = spec
        self._n_ctx = self._context(1)
        self._child = Child(path, self._n_ctx)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.close()

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
        answer, _ = self._child.ask(do="tokenize", text=text, add_special=add_special, parse_special=parse_special)
        tokens: list[int] = answer["token_ids"]
        return tokens

    def _row(self, token_ids: Sequence[int], count: int) -> np.ndarray:
        ids, size = [int(token) for token in token_ids], self._spec.vocab_size
        # One more than there should be, so that a larger vocabulary inside the file is noticed.
        answer, data = self._child.ask(do="row", token_ids=ids, count=count + (count == size), size=size)
        row = np.frombuffer(data, np.float32)
        if answer["entries"] != count or np.isnan(row).any():
            raise EngineFailed(f"{self._path}: llama.cpp gave {answer['entries']} log-probs in place of {count}")
        return row

    def _context(self, length: int) -> int:
        """Context to start the engine with for sequences of `length` tokens: one more, for the token it samples."""
        rope = self._spec.rope
        limit = self._spec.max_position_embeddings
        if rope.short_factor != rope.long_factor and length <= rope.original_max_position_embeddings:
            limit = rope.original_max_position_embeddings
        context = CONTEXT
        while context <= length:
            context *= 2
        return max(min(context, limit), length + 1)

    def _fit(self, length: int) -> None:
        """Start the engine anew if `length` tokens need more context, or other LongRoPE factors, than it has."""
        if length == 0:
            raise BadOption("no token ids to run")
        rope = self._spec.rope
        if length < self._n_ctx and rope.factors(length) == rope.factors(self._n_ctx):
            return
        self._child.close()
        self._n_ctx = self._context(length)
        self._child = Child(self._path, self._n_ctx)


class LlamaCppRuntime:
    """The engine that most GGUF files meet in the end."""

    name = "llama-cpp"
    summary = "llama.cpp on this machine's CPU or GPU (package xllamacpp)"
    formats = ("gguf",)
    architectures = ("minicpm", "llama")

    def missing(self) -> str | None:
        """None when xllamacpp is installed."""
        return None if importlib.util.find_spec("xllamacpp") else "pip install 'quantkit[llama-cpp]'"

    def arithmetic(self, checkpoint: Checkpoint) -> str:
        """ggml rounds the inputs of a product to the type that its kernel for the weights takes."""
        precision = precision_of(checkpoint)
        inputs = {QUANTIZED: "int8 inputs", "float16": "float16 inputs", "bfloat16": "bfloat16 inputs"}
        return inputs.get(precision, "float32")

    def refuses(self, checkpoint: Checkpoint) -> None:
        """Always None: a GGUF that was read strictly is one that it loads."""

    def open(self, path: Path) -> LlamaCppSession:
        """Read the file strictly, then let the engine load it; its parser never sees what ours refused."""
        install = self.missing()
        if install is not None:
            raise MissingDependency("llama.cpp needs the package xllamacpp", hint=install)
        return LlamaCppSession(path, registry.open_checkpoint(path).spec)


RUNTIME = LlamaCppRuntime()
