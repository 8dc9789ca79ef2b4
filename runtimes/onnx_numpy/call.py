"""One operation with its values, as the functions of the operators are given it.

What an operator does not ask for it does not follow: an attribute or an input that nobody asked for is refused
afterwards, so that nothing in a graph is passed over in silence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import numpy as np

from quantkit.errors import MalformedFile, UnsupportedModel
from quantkit.runtimes.onnx_numpy.graph import Node

MOST_BYTES = 4 << 30
"""Of one value: graphs of a few bytes can ask for exabytes."""


class Call:
    """`node`, the values of its inputs (None = left out), and the version of its domain's operators."""

    def __init__(self, node: Node, values: Sequence[np.ndarray | None], version: int) -> None:
        self.version = version
        self.outputs = len(node.outputs)
        self._attributes = node.attributes
        self._values = values
        self._asked: set[str] = set()
        self._taken: set[int] = set()

    @property
    def count(self) -> int:
        """How many inputs it has."""
        return len(self._values)

    def value(self, index: int) -> np.ndarray:
        """An input that must be there."""
        found = self.optional(index)
        if found is None:
            raise MalformedFile(f"it has no input {index}")
        return found

    def values(self) -> list[np.ndarray]:
        """All inputs of an operator that takes any number."""
        return [self.value(index) for index in range(self.count)]

    def optional(self, index: int) -> np.ndarray | None:
        """An input, None where it is left out."""
        self._taken.add(index)
        return self._values[index] if index < self.count else None

    def integers(self, index: int) -> list[int]:
        """An input of whole numbers, such as a shape or axes."""
        values = self.value(index)
        if values.dtype.kind not in "iu" or values.ndim > 1:
            raise MalformedFile(f"input {index} is {values.dtype} {list(values.shape)}, not a list of integers")
        return [int(value) for value in values.reshape(-1)]

    def attribute(self, name: str, default: object = None) -> object:
        """An attribute as it stands; `default` where it is left out."""
        self._asked.add(name)
        return self._attributes.get(name, default)

    def integer(self, name: str, default: int | None = None) -> int:
        """An attribute that is an integer; without a default it must be there."""
        return cast(int, self._typed(name, default, int))

    def number(self, name: str, default: float | None = None) -> float:
        """An attribute that is a float."""
        return cast(float, self._typed(name, default, float))

    def numbers(self, name: str) -> tuple[int, ...] | None:
        """An attribute that is a list of integers, None where it is left out."""
        found = self.attribute(name)
        if found is not None and not (isinstance(found, tuple) and all(isinstance(value, int) for value in found)):
            raise MalformedFile(f"attribute {name!r} is no list of integers")
        return cast("tuple[int, ...] | None", found)

    def refuse_others(self) -> None:
        """Raise `UnsupportedModel` for an attribute or an input that was given and not asked for."""
        for name in self._attributes:
            if name not in self._asked:
                raise UnsupportedModel(f"attribute {name!r} is not evaluated")
        for index, value in enumerate(self._values):
            if value is not None and index not in self._taken:
                raise UnsupportedModel(f"input {index} is not evaluated")

    def _typed(self, name: str, default: object, kind: type) -> object:
        found = self.attribute(name, default)
        if type(found) is not kind:
            raise MalformedFile(f"attribute {name!r} is {'missing' if found is None else 'of another type'}")
        return found


Operator = Callable[[Call], Sequence[np.ndarray]]
Operators = Mapping[tuple[str, str], Operator]
"""Domain and type of an operator to what computes its outputs."""


def allow(shape: Sequence[int], dtype: np.dtype) -> None:
    """Raise `MalformedFile` before a value is made that would be too large."""
    size = math.prod(shape) * dtype.itemsize
    if any(length < 0 for length in shape):
        raise MalformedFile(f"it would make a value of the shape {list(shape)}")
    if size > MOST_BYTES:
        raise MalformedFile(f"it would make a value of {size:,} bytes; the limit is {MOST_BYTES:,}")


def axis_of(axis: int, rank: int) -> int:
    """An axis counted from the front; raises `MalformedFile` where there is none."""
    if not -rank <= axis < rank:
        raise MalformedFile(f"it has no axis {axis}, of {rank}")
    return axis % rank


def axes_of(axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """Axes counted from the front, each once."""
    found = tuple(axis_of(axis, rank) for axis in axes)
    if len(set(found)) != len(found):
        raise MalformedFile(f"it names an axis twice in {list(axes)}")
    return found
