"""How dense weights become a container's blocks where it quantizes by itself, and which types single tensors get, or
may get."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.tensors.scheme import Scheme

CALIBRATED = "calibrated"
"""The algorithm whose codes a solver chooses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockOptions:
    """What a user may choose; the defaults choose nothing.

    algorithm: "reference" is what the container's own tool does, byte for byte; "searched" is better at the same bytes;
        None = the exporter's default.
    tensor_types: PATTERN=TYPE, regular expressions searched in the container's names of tensors; the first one counts.
    output_type, embedding_type: of the head and of the embedding, in the container's words.
    pure: whether every other matrix gets the same type, and none more bits than others.
    like: a file of the container whose types are taken, tensor by tensor, before all rules.
    imatrix: a file that tells how much every column of a matrix counts.
    """

    algorithm: str | None = None
    tensor_types: tuple[str, ...] = ()
    output_type: str | None = None
    embedding_type: str | None = None
    pure: bool = False
    like: Path | None = None
    imatrix: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """What was chosen, for a manifest; of a file its name."""
        chosen = {
            "algorithm": self.algorithm,
            "tensor_types": list(self.tensor_types),
            "output_type": self.output_type,
            "embedding_type": self.embedding_type,
            "pure": self.pure,
            "like": None if self.like is None else self.like.name,
            "imatrix": self.imatrix.name if self.imatrix is not None else None,
        }
        return {name: value for name, value in chosen.items() if value}


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A type that a weight may become.

    type: in the container's words. scheme: what its codes are; None = plain floats, as good as the original. nbytes: in
    the finished file, with padding. input_run: how many values share a scale where engines round to int8 what is
    multiplied with it; None = they do not.
    """

    type: str
    scheme: Scheme | None
    nbytes: int
    input_run: int | None = None


Candidates = Mapping[str, tuple[Candidate, ...]]
"""By weight name, in the order of the model."""
