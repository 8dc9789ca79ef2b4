"""The child process of `session.py`: holds a model in llama.cpp's C API and answers questions (`_engine_child.py`).

{"do": "load", "path": P, "size": V, "threads": N}                      {}, or {"unknown_layout": "one line"}
{"do": "logits", "token_ids": [...], "n_ctx": N}                        {} + float32 rows [T, V]
{"do": "next", "token_ids": [...], "n_ctx": N}                          {} + float32 row [1, V]
{"do": "trace", "token_ids": [...], "n_ctx": N}                         {"stages": [name, ...]} + float32 [T, ?] each
{"do": "tokenize", "text": T, "add_special": B, "parse_special": B}     {"token_ids": [...]}
anything that the engine refuses                                        {"error": "one line"}

Float32 keys and values, and no flash attention (it rounds them to float16): what is left of the difference from exact
arithmetic is then the artifact's own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from ctypes import CDLL, c_int32, c_void_p, cast
from itertools import takewhile
from typing import Any

import numpy as np

from quantkit.runtimes._engine_child import NOTHING, serve, stages_reply
from quantkit.runtimes.llama_cpp.context import GRANULE
from quantkit.runtimes.llama_cpp.library import (
    DISABLED,
    F32,
    EvalCallback,
    LogCallback,
    UnknownLayout,
    decode,
    load_library,
    values_of,
)

MOST_ROWS = 1024
"""Tokens that one `llama_decode` evaluates at most: their logits are held in memory, 300 MB for 73 448 tokens."""
MOST_SCORES = 4 << 20
"""Attention scores of a head that it computes at most, whatever the context: without flash attention they are held."""
EMBEDDING, BLOCK, NORM, LOGITS = "embd", "l_out-{}", "result_norm", "result_output"
"""Names of the nodes of llama.cpp's graph whose values are the stages of a trace."""
ERROR, CONTINUED = 4, 5
"""Of `enum ggml_log_level`."""


class Engine:
    """One loaded model, and one context that is made anew when another size is asked for."""

    def __init__(self, library: CDLL, *, path: str, size: int, threads: int) -> None:
        self._library = library
        self._threads = threads
        self._size = size
        self._log = LogCallback(Log().write)  # kept: the library calls it until the process ends
        library.llama_log_set(self._log, None)
        library.llama_backend_init()
        self._model = library.llama_model_load_from_file(os.fsencode(path), library.llama_model_default_params())
        if not self._model:
            raise RuntimeError("the model was not loaded")
        self._vocabulary = library.llama_model_get_vocab(self._model)
        found = library.llama_vocab_n_tokens(self._vocabulary)
        if found != size:
            raise RuntimeError(f"the file has {found} tokens, not {size}")
        self._context = self._made(GRANULE)

    def logits(self, token_ids: list[int], n_ctx: int) -> np.ndarray:
        """Rows [T, V] of a sequence."""
        context = self._fitting(n_ctx)
        context.keep(0)
        rows, done = np.empty((len(token_ids), self._size), np.float32), 0
        for part in context.extend(self._checked(token_ids), every_row=True):
            rows[done : done + len(part)] = part
            done += len(part)
        return rows

    def next(self, token_ids: list[int], n_ctx: int) -> np.ndarray:
        """The row [1, V] of the last token; what the context holds of the others is not evaluated again."""
        context = self._fitting(n_ctx)
        pairs = zip(context.held, token_ids[:-1], strict=False)
        context.keep(sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)))
        new = self._checked(token_ids)[len(context.held) :]
        *_, row = context.extend(new, every_row=False)
        return row

    def trace(self, token_ids: list[int], n_ctx: int) -> dict[str, np.ndarray]:
        """Every stage as `Session.trace` names them, flat, from a context of their own."""
        blocks = range(self._library.llama_model_n_layer(self._model))
        nodes = {EMBEDDING: "embedding", **{BLOCK.format(n): f"block {n}" for n in blocks}}
        recorder = Recorder(self._library, {**nodes, NORM: "final norm", LOGITS: "logits"})
        context = self._made(n_ctx, recorder)
        try:
            for _ in context.extend(self._checked(token_ids), every_row=True):
                pass
        finally:
            context.free()
        return recorder.stages()

    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids by the vocabulary inside the file."""
        data = text.encode()
        room = len(data) + 2
        while True:
            tokens = (c_int32 * room)()
            count = self._library.llama_tokenize(
                self._vocabulary, data, len(data), tokens, room, add_special, parse_special
            )
            if count >= 0:
                return list(tokens[:count])
            room = -count

    def _fitting(self, n_ctx: int) -> Context:
        if n_ctx != self._context.n_ctx:
            self._context.free()
            self._context = self._made(n_ctx)
        return self._context

    def _made(self, n_ctx: int, recorder: Recorder | None = None) -> Context:
        return Context(
            self._library, self._model, n_ctx=n_ctx, size=self._size, threads=self._threads, recorder=recorder
        )

    def _checked(self, token_ids: list[int]) -> list[int]:
        outside = [token for token in token_ids if not 0 <= token < self._size]
        if outside:
            raise RuntimeError(f"token id {outside[0]} is outside the vocabulary of {self._size}")
        return token_ids


class Context:
    """What llama.cpp calls a context: keys and values of one sequence, and room to compute.

    Raises:
        RuntimeError: llama.cpp makes none.
        UnknownLayout: it has other sizes than those asked for.
    """

    def __init__(
        self, library: CDLL, model: int, *, n_ctx: int, size: int, threads: int, recorder: Recorder | None
    ) -> None:
        self._library = library
        self._size = size
        self._recorder = recorder  # kept: the library calls it
        self._rows = min(n_ctx, MOST_ROWS, MOST_SCORES // n_ctx + 1)
        self.n_ctx = n_ctx
        self.held: list[int] = []  # token ids whose keys and values it holds
        params = library.llama_context_default_params()
        asked = {"n_ctx": n_ctx, "n_batch": self._rows, "n_ubatch": self._rows}
        asked |= {"n_threads": threads, "n_threads_batch": threads}
        for name, value in asked.items():
            setattr(params, name, value)
        params.type_k = params.type_v = F32
        params.flash_attn_type = DISABLED
        if recorder is not None:
            params.cb_eval = cast(recorder.callback, c_void_p)
        self._handle = library.llama_init_from_model(model, params)
        if not self._handle:
            raise RuntimeError(f"llama.cpp makes no context of {n_ctx} tokens")
        for name, value in asked.items():
            found = getattr(library, f"llama_{name}")(self._handle)
            if found != value:
                raise UnknownLayout(f"a context that was asked for {name} = {value} has {found}")

    def free(self) -> None:
        """Give its memory back; safe to call twice."""
        self._library.llama_free(self._handle)
        self._handle, self.n_ctx = None, 0

    def keep(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        memory = self._library.llama_get_memory(self._handle)
        if length and self._library.llama_memory_seq_rm(memory, 0, length, -1):
            del self.held[length:]
            return
        self._library.llama_memory_clear(memory, True)
        self.held = []

    def extend(self, token_ids: list[int], *, every_row: bool) -> Iterator[np.ndarray]:
        """Evaluate the next tokens, part by part; yield the logits of each part's tokens, or of its last, [?, V].

        What is yielded is the engine's own memory, which the next part overwrites.
        """
        for start in range(0, len(token_ids), self._rows):
            part = token_ids[start : start + self._rows]
            code = decode(self._library, self._handle, part, every_row=every_row)
            if code:
                raise RuntimeError(f"llama_decode returned {code}")
            self.held += part
            shape = (len(part) if every_row else 1, self._size)
            yield np.ctypeslib.as_array(self._library.llama_get_logits(self._handle), shape)


class Recorder:
    """What `cb_eval` sees: keeps the values of the nodes in `nodes`, under the names that these are given there."""

    def __init__(self, library: CDLL, nodes: Mapping[str, str]) -> None:
        self._library = library
        self._nodes = nodes
        self._parts: dict[str, list[np.ndarray]] = {name: [] for name in nodes.values()}
        self._problem: Exception | None = None
        self.callback = EvalCallback(self._see)

    def stages(self) -> dict[str, np.ndarray]:
        """Name to flat values, in order. Raises RuntimeError where the graph lacks a node or kept it otherwise."""
        if self._problem is not None:
            raise self._problem
        for node, name in self._nodes.items():
            if not self._parts[name]:
                raise RuntimeError(f"the graph has no node {node!r}")
        return {name: np.concatenate(parts) for name, parts in self._parts.items()}

    def _see(self, tensor: int, ask: bool, user_data: int | None) -> bool:
        name = self._nodes.get(self._library.ggml_get_name(tensor).decode(errors="replace"))
        if ask or name is None:
            return name is not None
        try:
            self._parts[name].append(values_of(self._library, tensor))
        except RuntimeError as problem:  # it cannot pass through the library
            self._problem = problem
        return self._problem is None


class Log:
    """Passes the library's errors to stderr, and drops the rest."""

    def __init__(self) -> None:
        self._level = 0

    def write(self, level: int, text: bytes, user_data: int | None) -> None:
        """Called by the library, also in the middle of a line."""
        self._level = level if level != CONTINUED else self._level
        if self._level == ERROR:
            os.write(2, text)


class Answers:
    """The engine's answers to requests; it is loaded by the first one."""

    def __init__(self) -> None:
        self._engine: Engine | None = None

    def __call__(self, request: dict[str, Any]) -> tuple[Mapping[str, Any], np.ndarray]:
        """Head and data of the answer to `request`."""
        do = request.pop("do")
        if do == "load":
            try:
                self._engine = Engine(load_library(), **request)
            except UnknownLayout as reason:
                return {"unknown_layout": str(reason)}, NOTHING
            return {}, NOTHING
        assert self._engine is not None
        if do == "trace":
            return stages_reply(self._engine.trace(**request))
        if do == "tokenize":
            return {"token_ids": self._engine.tokenize(**request)}, NOTHING
        return {}, self._engine.logits(**request) if do == "logits" else self._engine.next(**request)


def main() -> None:
    """Answer until stdin ends."""
    serve(Answers())
