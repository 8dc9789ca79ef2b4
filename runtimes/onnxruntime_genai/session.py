"""An ONNX folder in onnxruntime-genai's `Generator`, on token ids.

Its own tokenizer reads a text otherwise than the model's, measured with 0.18 on the golden model
(`tests/runtimes/onnxruntime_genai/test_tokenizer.py`): it puts no beginning-of-sequence token first unless it is told
to, and of several spaces before a word it gives the last one to the word, where the model's keeps them together, so
that indented code becomes other ids. It is therefore given ids alone; `own_token_ids` tells what it would have read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quantkit.errors import BadOption
from quantkit.models.spec import ModelSpec
from quantkit.runtimes._onnx_allowances import evaluating
from quantkit.runtimes._onnx_session import OnnxEngineSession
from quantkit.runtimes.onnxruntime_genai.settings import context_of

SERVE = "from quantkit.runtimes.onnxruntime_genai.engine import main; main()"
"""What the child runs."""


class OnnxruntimeGenaiSession(OnnxEngineSession):
    """The folder in onnxruntime-genai; see `OnnxEngineSession`. Raises what `context_of` does, too."""

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        self._context = context_of(folder)
        super().__init__(folder, spec, engine="onnxruntime-genai", serve=SERVE, context=self._context)

    def own_token_ids(self, text: str, *, add_special: bool) -> list[int]:
        """What its own tokenizer makes of `text`; add_special: with the beginning-of-sequence token."""
        allowance = evaluating(self._path, self._spec, len(text) + 1, 1)
        answer, _ = self._child.ask(allowance, do="tokenize", text=text, add_special=add_special)
        tokens: list[int] = answer["token_ids"]
        return tokens

    def _checked(self, token_ids: Sequence[int]) -> list[int]:
        ids = super()._checked(token_ids)
        if len(ids) > self._context:
            raise BadOption(
                f"{self._path} was exported for contexts of {self._context} tokens, and these are {len(ids)}",
                hint="export it for a longer --context",
            )
        return ids
