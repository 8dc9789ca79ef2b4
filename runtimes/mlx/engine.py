"""The child process of `session.py`: holds a model in mlx-lm and answers questions (`_engine_child.py`).

{"do": "load", "path": P, "size": V}        {}
{"do": "logits", "token_ids": [...]}        {} + float32 rows [T, V]
{"do": "next", "token_ids": [...]}          {} + float32 row [1, V]
{"do": "trace", "token_ids": [...]}         {"stages": [name, ...]} + float32 [T, ?] each
anything that the engine refuses            {"error": "one line"}

The model is computed in float32: an mlx model takes the dtype of its weights, and with float16 its log-probabilities
are off by 2e-2 where they are off by 5e-6 so. Prompts run in parts through the cache, as `mlx_lm.generate` has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache
from mlx_lm.utils import load_model

from quantkit.runtimes._engine_child import rows_reply, serve_engine, stages_reply

PART = 1024
"""Tokens that are evaluated at a time, at most: attention holds their scores."""


class Engine:
    """One loaded model, and the cache of the sequence that `next` was asked for last."""

    def __init__(self, path: str, size: int) -> None:
        self._model, _ = load_model(Path(path), lazy=True)
        self._model.set_dtype(mx.float32)
        mx.eval(self._model.parameters())
        self._size = size
        self._ids: list[int] = []
        self._cache = make_prompt_cache(self._model)

    def logits(self, token_ids: list[int]) -> np.ndarray:
        """Rows [T, V] of a sequence."""
        rows = list(self._evaluated(token_ids, make_prompt_cache(self._model)))
        return np.concatenate(rows)

    def next(self, token_ids: list[int]) -> np.ndarray:
        """The row [1, V] of the last token; what the cache holds of the others is not evaluated again."""
        pairs = zip(self._ids, token_ids[:-1], strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        trim_prompt_cache(self._cache, len(self._ids) - shared)
        *_, rows = self._evaluated(token_ids[shared:], self._cache)
        self._ids = token_ids
        row: np.ndarray = rows[-1:]
        return row

    def trace(self, token_ids: list[int]) -> dict[str, np.ndarray]:
        """Every stage as `Session.trace` names them."""
        found: dict[str, list[np.ndarray]] = {}
        with self._recording(lambda name, values: found.setdefault(name, []).append(values)):
            logits = self.logits(token_ids)
        stages = {name: np.concatenate(parts) for name, parts in found.items()}
        return {**stages, "logits": logits}

    def _evaluated(self, token_ids: list[int], cache: list[Any]) -> Iterator[np.ndarray]:
        for start in range(0, len(token_ids), PART):
            yield _rows(self._model(mx.array([token_ids[start : start + PART]]), cache=cache))

    @contextmanager
    def _recording(self, record: Callable[[str, np.ndarray], None]) -> Iterator[None]:
        """Tell of every stage that the model's own forward pass goes through."""
        inner = self._model.model
        embed, layers, norm = inner.embed_tokens, inner.layers, inner.norm
        scale = getattr(inner.args, "scale_emb", 1)

        def watched(module: Any, name: str, scale: float = 1) -> _Watched:  # noqa: ANN401 - mlx is not typed
            return _Watched(module, lambda x: record(name, _rows(x * scale)))

        inner.embed_tokens = watched(embed, "embedding", scale)
        inner.layers = [watched(layer, f"block {n}") for n, layer in enumerate(layers)]
        inner.norm = watched(norm, "final norm")
        try:
            yield
        finally:
            inner.embed_tokens, inner.layers, inner.norm = embed, layers, norm


class _Watched:
    """A module that tells what it returns; everything else is the module's."""

    def __init__(self, module: Any, tell: Callable[[Any], None]) -> None:  # noqa: ANN401 - mlx is not typed
        self._module, self._tell = module, tell

    def __call__(self, *given: Any, **named: Any) -> Any:  # noqa: ANN401 - as above
        found = self._module(*given, **named)
        self._tell(found)
        return found

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - as above
        return getattr(self._module, name)


def _rows(values: Any) -> np.ndarray:  # noqa: ANN401 - mlx is not typed
    """[1, T, n] of mlx as float32 [T, n] of numpy."""
    return np.array(values[0], np.float32)


def main() -> None:
    """Answer requests until stdin ends."""
    serve_engine(Engine, {"logits": rows_reply, "next": rows_reply, "trace": stages_reply})
