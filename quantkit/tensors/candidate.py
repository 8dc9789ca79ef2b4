"""What a weight may become in a container: one type, with its codes, its bytes, and how engines compute with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quantkit.tensors.scheme import Scheme


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
