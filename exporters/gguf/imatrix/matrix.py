"""What an importance matrix says of the tensors of a model, as llama-quantize reads it.

A tensor that it does not name is quantized without, and what it names besides is not looked at; both are told. Of a
length that is not the tensor's it is refused, but for the embedding, for which it then does not count. The IQ types
that cannot do without are not written here, and q2_k_s needs weights for its Q2_K tensors. Source: llama.cpp
`src/llama-quant.cpp` (`llama_model_quantize_impl`, `tensor_requires_imatrix`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from quantkit.errors import BadOption, InconsistentCheckpoint, UnsupportedSpec, and_more
from quantkit.exporters.gguf.blocks import BlockType
from quantkit.exporters.gguf.container.header import entry
from quantkit.exporters.gguf.container.types import ValueType
from quantkit.exporters.gguf.mixture.file_types import FileType
from quantkit.exporters.gguf.mixture.rules import EMBEDDING, HEAD
from quantkit.exporters.gguf.reference.quantizer import WEIGHED
from quantkit.exporters.gguf.types.super_blocks import Q2_K

WEIGHTED_ONLY = "q2_k_s"
"""The file type whose Q2_K tensors llama-quantize does not write without weights, embedding and head aside."""


@dataclass(frozen=True, slots=True, eq=False)
class ImportanceMatrix:
    """A file's weights of columns, float32, flat, by GGUF's names of tensors.

    file, digest: its name, and SHA-256 of its bytes. texts, chunks: what was measured on, as far as it says.
    """

    file: str
    digest: str
    weights: Mapping[str, np.ndarray]
    texts: tuple[str, ...]
    chunks: int

    def to_json(self) -> dict[str, str]:
        """For a manifest."""
        return {"file": self.file, "sha256": self.digest}

    def entries(self) -> list[bytes]:
        """The keys that llama-quantize puts into what it writes; the file's name without its folder."""
        found = [entry("quantize.imatrix.file", ValueType.STRING, self.file)]
        if self.texts:
            found.append(entry("quantize.imatrix.dataset", ValueType.STRING, self.texts[0]))
        found.append(entry("quantize.imatrix.entries_count", ValueType.UINT32, len(self.weights)))
        if self.chunks > 0:
            found.append(entry("quantize.imatrix.chunks_count", ValueType.UINT32, self.chunks))
        return found

    def of(self, name: str, cols: int) -> np.ndarray | None:
        """The weights of the columns of a tensor, float32 [cols]; None where the file has none of that length."""
        found = self.weights.get(name)
        return found if found is not None and found.size == cols else None

    def check(self, shapes: Mapping[str, tuple[int, ...]], chosen: Mapping[str, BlockType], kind: FileType) -> None:
        """Raise unless matrices of these shapes can be quantized to the chosen types by it; all by GGUF's names.

        Raises:
            BadOption: no tensor that has weights becomes a type that reads them.
            InconsistentCheckpoint: weights of another length than a tensor's rows.
            UnsupportedSpec: a tensor without weights whose type needs them.
        """
        for name, shape in shapes.items():
            found = self.weights.get(name)
            if found is not None and found.size != shape[-1] and name != EMBEDDING:
                raise InconsistentCheckpoint(
                    f"{self.file}: {found.size:,} weights for {name}, whose rows have {shape[-1]:,}",
                    hint="it was measured on another model",
                )
            needed = kind.name == WEIGHTED_ONLY and chosen[name] is Q2_K and name not in (EMBEDDING, HEAD)
            if found is None and needed:
                raise UnsupportedSpec(
                    f"{name}: {self.file} has no weights for it, and {kind.name} needs them", hint="choose type q2_k"
                )
        if not any(chosen[name] in WEIGHED and self.of(name, shape[-1]) is not None for name, shape in shapes.items()):
            raise BadOption(
                f"{self.file}: no tensor of this {kind.name} file is quantized by importance weights",
                hint="leave --imatrix out, or choose a type such as q4_k_m",
            )

    def notes(self, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
        """What the user should know of these matrices."""
        lacking = [name for name, shape in shapes.items() if self.of(name, shape[-1]) is None]
        if lacking:
            yield f"{self.file} has no weights for {lacking[0]}{and_more(lacking)}: quantized without"
        unknown = [name for name in self.weights if name not in shapes]
        if unknown:
            yield f"{self.file} has weights for {unknown[0][:80]}{and_more(unknown)}, which this model has not"
