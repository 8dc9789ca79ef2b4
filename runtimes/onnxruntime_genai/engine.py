"""The child process of `session.py`: holds a model in onnxruntime-genai and answers questions (`_engine_child.py`).

{"do": "load", "folder": F, "context": N}                          {}
{"do": "logits", "token_ids": [...], "step": N}                    {} + float32 rows [T, V]
{"do": "next", "token_ids": [...], "step": N, "anew": B}           {} + float32 row [1, V]
{"do": "tokenize", "text": T, "add_special": B}                    {"token_ids": [...]}
anything that the engine refuses                                   {"error": "one line"}
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile
from typing import Any

import numpy as np
import onnxruntime_genai

from quantkit.runtimes._engine_child import ids_reply, rows_reply, serve_engine

SMALLEST_ROOM = 256
LOGITS = "logits"


class Engine:
    """A loaded model, and a `Generator` that remembers the ids of `next`."""

    def __init__(self, *, folder: str, context: int) -> None:
        self._context = context
        self._model = onnxruntime_genai.Model(folder)
        self._tokenizer: Any = None
        self._generator: Any = None
        self._ids: list[int] = []
        self._room = 0

    def logits(self, token_ids: list[int], step: int) -> np.ndarray:
        """Rows [T, V] of a sequence; nothing of it, nor of what was before, is remembered."""
        self._generator, self._ids = None, []
        return np.concatenate(list(self._extend(self._started(len(token_ids)), token_ids, step)))

    def next(self, token_ids: list[int], step: int, anew: bool) -> np.ndarray:
        """The row [1, V] of the last token; anew: what is remembered of others does not count."""
        pairs = zip(self._ids, token_ids[:-1], strict=False)
        known = 0 if anew else sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if self._generator is None or not known or len(token_ids) > self._room:
            self._room = min(self._context, max(SMALLEST_ROOM, 1 << (len(token_ids) - 1).bit_length()))
            self._generator, self._ids, known = self._started(self._room), [], 0
        elif known < len(self._ids):
            self._generator.rewind_to(known)
        self._ids = []  # until it has read them: it may refuse
        *_, rows = self._extend(self._generator, token_ids[known:], step)
        self._ids = token_ids
        return rows[-1:]

    def tokenize(self, text: str, add_special: bool) -> list[int]:
        """Token ids by the engine's own tokenizer."""
        if self._tokenizer is None:
            self._tokenizer = onnxruntime_genai.Tokenizer(self._model)
        self._tokenizer.update_options(add_special_tokens=str(add_special).lower())
        return [int(token) for token in self._tokenizer.encode(text)]

    def _started(self, room: int) -> Any:  # noqa: ANN401 - the package is not typed
        params = onnxruntime_genai.GeneratorParams(self._model)
        params.set_search_options(max_length=room, min_length=0, batch_size=1, num_beams=1, do_sample=False)
        return onnxruntime_genai.Generator(self._model, params)

    def _extend(self, generator: Any, token_ids: list[int], step: int) -> Iterator[np.ndarray]:  # noqa: ANN401
        """Let it read the next tokens, part by part; yield the rows [?, V] of each part."""
        for start in range(0, len(token_ids), step):
            part = token_ids[start : start + step]
            generator.append_tokens(np.array([part], np.int32))
            rows = np.array(generator.get_output(LOGITS)[0], np.float32)
            if len(rows) != len(part):
                raise RuntimeError(f"it has {len(rows)} rows of logits for {len(part)} tokens")
            yield rows


def main() -> None:
    """Answer requests until stdin ends."""
    serve_engine(Engine, {"logits": rows_reply, "next": rows_reply, "tokenize": ids_reply})
