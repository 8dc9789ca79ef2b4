"""The child process of `session.py`: holds a model in llama.cpp's C API and answers questions (`child.py`).

{"do": "load", "path": P, "size": V, "threads": N}                      {}, or {"unknown_layout": "one line"}
{"do": "logits", "token_ids": [...], "n_ctx": N}                        {} + float32 rows [T, V]
{"do": "next", "token_ids": [...], "n_ctx": N}                          {} + float32 row [V]
{"do": "trace", "token_ids": [...], "n_ctx": N}                         {"stages": [name, ...]} + float32 [T, ?] each
{"do": "tokenize", "text": T, "add_special": B, "parse_special": B}     {"token_ids": [...]}
anything that the engine refuses                                        {"error": "one line"}

Float32 keys and values, and no flash attention (it rounds them to float16): what is left of the difference from exact
arithmetic is then the artifact's own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ctypes import c_int32, c_void_p, cast
from itertools import takewhile
from typing import Any

import numpy as np

from quantkit.runtimes.llama_cpp.child import NOTHING, serve
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
ERROR, CONTINUED = 4, 5
"""Of `enum ggml_log_level`."""


class Engine:
    """One loaded model, and one context that is made anew when another size is asked for."""

    def __init__(self, library: Any, *, path: str, size: int, threads: int) -> None:
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
        self._n_ctx = GRANULE
        self._context = self._made_context(GRANULE)
        self._held: list[int] = []
        """Token ids whose keys and values the context holds."""

    def logits(self, token_ids: list[int], n_ctx: int) -> np.ndarray:
        """Rows [T, V] of a sequence."""
        self._fit(n_ctx)
        self._keep(0)
        rows = np.empty((len(token_ids), self._size), np.float32)
        for start in range(0, len(token_ids), MOST_ROWS):
            part = token_ids[start : start + MOST_ROWS]
            self._decode(self._context, part, every_row=True)
            self._held += part
            rows[start : start + len(part)] = self._rows(len(part))
        return rows

    def next(self, token_ids: list[int], n_ctx: int) -> np.ndarray:
        """The row [V] of the last token; what the context holds of the others is not evaluated again."""
        self._fit(n_ctx)
        pairs = zip(self._held, token_ids[:-1], strict=False)
        self._keep(sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)))
        for start in range(len(self._held), len(token_ids), MOST_ROWS):
            part = token_ids[start : start + MOST_ROWS]
            self._decode(self._context, part, every_row=False)
            self._held += part
        return self._rows(1)[0].copy()

    def trace(self, token_ids: list[int], n_ctx: int) -> dict[str, np.ndarray]:
        """Every stage as `Session.trace` names them, flat, from a context of their own."""
        nodes = {"embd": "embedding"}
        nodes |= {f"l_out-{n}": f"block {n}" for n in range(self._library.llama_model_n_layer(self._model))}
        nodes |= {"result_norm": "final norm", "result_output": "logits"}
        recorder = Recorder(self._library, nodes)
        with self._traced_context(n_ctx, recorder) as context:
            for start in range(0, len(token_ids), MOST_ROWS):
                self._decode(context, token_ids[start : start + MOST_ROWS], every_row=True)
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

    def _fit(self, n_ctx: int) -> None:
        if n_ctx == self._n_ctx:
            return
        self._library.llama_free(self._context)
        self._context, self._held, self._n_ctx = None, [], 0
        self._context, self._n_ctx = self._made_context(n_ctx), n_ctx

    def _made_context(self, n_ctx: int, recorder: Recorder | None = None) -> int:
        library, rows = self._library, min(n_ctx, MOST_ROWS)
        params = library.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = n_ctx, rows, rows
        params.n_threads = params.n_threads_batch = self._threads
        params.type_k = params.type_v = F32
        params.flash_attn_type = DISABLED
        if recorder is not None:
            params.cb_eval = cast(recorder.callback, c_void_p)
        context: int | None = library.llama_init_from_model(self._model, params)
        if not context:
            raise RuntimeError(f"no context of {n_ctx} tokens")
        asked = {"n_ctx": -(-n_ctx // GRANULE) * GRANULE, "n_batch": rows, "n_ubatch": rows}
        asked |= {"n_threads": self._threads, "n_threads_batch": self._threads}
        for name, value in asked.items():
            found = getattr(library, f"llama_{name}")(context)
            if found != value:
                raise UnknownLayout(f"a context that was asked for {name} = {value} has {found}")
        return context

    @contextmanager
    def _traced_context(self, n_ctx: int, recorder: Recorder) -> Iterator[int]:
        context = self._made_context(n_ctx, recorder)
        try:
            yield context
        finally:
            self._library.llama_free(context)

    def _keep(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        memory = self._library.llama_get_memory(self._context)
        if length and self._library.llama_memory_seq_rm(memory, 0, length, -1):
            del self._held[length:]
            return
        self._library.llama_memory_clear(memory, True)
        self._held = []

    def _decode(self, context: int | None, part: list[int], *, every_row: bool) -> None:
        outside = [token for token in part if not 0 <= token < self._size]
        if outside:
            raise RuntimeError(f"token id {outside[0]} is outside the vocabulary of {self._size}")
        assert context is not None
        code = decode(self._library, context, part, every_row=every_row)
        if code:
            raise RuntimeError(f"llama_decode returned {code}")

    def _rows(self, count: int) -> np.ndarray:
        """The logits of the last decode, [count, V]: a view of the engine's memory."""
        return np.ctypeslib.as_array(self._library.llama_get_logits(self._context), (count, self._size))


class Recorder:
    """What `cb_eval` sees: keeps the values of the nodes in `nodes`, under the names that these are given there."""

    def __init__(self, library: Any, nodes: Mapping[str, str]) -> None:
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
            stages = self._engine.trace(**request)
            return {"stages": list(stages)}, np.concatenate(list(stages.values()))
        if do == "tokenize":
            return {"token_ids": self._engine.tokenize(**request)}, NOTHING
        return {}, self._engine.logits(**request) if do == "logits" else self._engine.next(**request)


def main() -> None:
    """Answer until stdin ends."""
    serve(Answers())
