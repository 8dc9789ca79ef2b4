"""`Checkpoint`: a model on disk, read lazily, whatever container it lies in.

A Hugging Face folder, a compressed-tensors folder and a GGUF file all read as the same thing: a `ModelSpec`,
weights under their Hugging Face names, and the files that travel with a model (tokenizer, template, licence).
Opening one reads headers only; tensor bytes are read through the views.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import one_line
from quantkit.models.spec import ModelSpec
from quantkit.tensors.views import QuantizedView, Weight

ATTENTIONS = ("dense", "sparse")
"""How a graph attends: to all tokens up to one, or to blocks of them as `ModelSpec.sparse` says."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checkpoint:
    """A complete model, checked against its own config: exactly the tensors of `spec.slots()`, with their shapes.

    path: the folder or file it was opened from.
    format: the exporter's name that read it ("hf", "gguf", ...).
    config: config.json as found; rebuilt from metadata where the container has none.
    weights: every tensor of `spec.slots()`, by Hugging Face name, in that order.
    files: tokenizer, template and other small files to carry along; bare name to a thunk that reads the bytes.
    inputs: the files that hold the weights (for digests, and to refuse writing over them).
    renamed: whether its files call tensors otherwise than the model does (`family/tensor_names.py`); engines that read
        the folder by themselves look for them under the model's own names.
    attention: "sparse" where the artifact itself attends so, as a graph may; else "dense", whatever the config says.
    notes: what reading found worth telling, one line each: files and tensors left aside, sums that do not add up;
        each is made `one_line`, because names and values in it come from strangers' files.
    """

    path: Path
    format: str
    config: Mapping[str, Any]
    spec: ModelSpec
    weights: Mapping[str, Weight]
    files: Mapping[str, Callable[[], bytes]]
    inputs: tuple[Path, ...]
    renamed: bool = False
    attention: str = "dense"
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "notes", tuple(map(one_line, self.notes)))

    @property
    def holds_codes(self) -> bool:
        """Whether any weight is quantized: codes and scales."""
        return any(isinstance(weight, QuantizedView) for weight in self.weights.values())
