"""What a golden file keeps of each tensor of the original: enough to recognise it, and to see how far another lies.

    digests     of the values as float32, and rounded as a dense artifact may hold them (`quantkit.tensors.digests`)
    energy      ||W||^2
    values      of a vector (the norms): all of it, float32
    sketch      of a matrix: SKETCH numbers, each the sum of the elements whose flat index has one remainder by SKETCH,
                every element with a random sign

The sketch is linear, and the square of its length is ||W||^2 on average over the signs; of the difference of two
sketches it is ||W - Q||^2, with a relative standard error of at most sqrt(2 / SKETCH), about 9 % (Charikar et al. 2002,
"Finding frequent items in data streams"; Alon et al. 1999). Elements that dominate make it more exact, not less. SKETCH
is prime, so that neither a row nor a column of a matrix falls into a few sums only.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantkit.errors import MalformedFile, NonFiniteValues
from quantkit.tensors.digests import ROUNDINGS, RoundedDigests
from quantkit.tensors.views import QuantizedView, Weight

SKETCH = 251
SKETCH_DEVIATION = math.sqrt(2 / SKETCH)
"""Relative standard error of a squared length that is read from a sketch."""
FLOAT32 = np.dtype("<f4")


@dataclass(frozen=True, slots=True, eq=False)
class WeightFacts:
    """See the module's docstring. `values` is None for a matrix, `sketch` None for a vector; both float32."""

    shape: tuple[int, ...]
    digests: Mapping[str, str]
    energy: float
    values: np.ndarray | None
    sketch: np.ndarray | None

    def to_json(self) -> dict[str, Any]:
        """A JSON object; arrays are base64 of little-endian float32."""
        return {
            "shape": list(self.shape),
            "digests": dict(self.digests),
            "energy": self.energy,
            "values": _encoded(self.values),
            "sketch": _encoded(self.sketch),
        }

    @classmethod
    def from_json(cls, data: object, where: str) -> WeightFacts:
        """Inverse of `to_json`; raises `MalformedFile`."""
        try:
            assert isinstance(data, Mapping)
            shape = tuple(int(size) for size in data["shape"])
            digests = {name: str(data["digests"][name]) for name in ROUNDINGS}
            values, sketch = _decoded(data["values"]), _decoded(data["sketch"])
            energy = float(data["energy"])
        except (AssertionError, KeyError, TypeError, ValueError):
            raise MalformedFile(f"{where}: what is recorded of a tensor is damaged") from None
        if (values is None) == (sketch is None) or (sketch is not None and len(sketch) != SKETCH):
            raise MalformedFile(f"{where}: what is recorded of a tensor is damaged")
        return cls(shape, digests, energy, values, sketch)


class Sketcher:
    """Takes the rows of a matrix in order and adds them up to its sketch; the signs depend on its name alone."""

    def __init__(self, name: str) -> None:
        seed = hashlib.sha256(f"quantkit sketch: {name}".encode()).digest()
        self._random = np.random.PCG64(int.from_bytes(seed[:16], "little"))
        self._sums = np.zeros(SKETCH, np.float64)
        self._next = 0

    def add(self, values: np.ndarray) -> None:
        """The next elements, float32 of any shape whose size is a multiple of 64, but for the last ones."""
        flat = np.ascontiguousarray(values, FLOAT32).reshape(-1)
        words = self._random.random_raw(-(-flat.size // 64))
        signs = np.unpackbits(words.astype("<u8").view(np.uint8), count=flat.size, bitorder="little")
        padded = np.zeros(-(-(self._next + flat.size) // SKETCH) * SKETCH, FLOAT32)
        turned = padded[self._next : self._next + flat.size]
        np.multiply(signs, np.float32(-2), out=turned)
        turned += np.float32(1)
        turned *= flat
        self._sums += padded.reshape(-1, SKETCH).sum(axis=0, dtype=np.float64)
        self._next = (self._next + flat.size) % SKETCH

    def sketch(self) -> np.ndarray:
        """float64 [SKETCH]."""
        sums: np.ndarray = self._sums.copy()
        return sums


def rows_per_chunk(shape: tuple[int, ...], elements: int = 1 << 20) -> int:
    """Rows of a matrix that are taken at a time: their elements are a multiple of 64, as `Sketcher.add` wants."""
    cols = max(1, math.prod(shape[1:]))
    step = 64 // math.gcd(64, cols)
    return max(1, elements // (cols * step)) * step


def value_chunks(view: Weight) -> Iterator[tuple[int, np.ndarray]]:
    """First row and float32 values of consecutive runs of rows, as `rows_per_chunk` has them; read once."""
    step = rows_per_chunk(view.shape)
    if isinstance(view, QuantizedView):
        tensor = view.read()
        for start in range(0, view.shape[0], step):
            yield start, tensor.part(slice(start, start + step)).dequantized()
        return
    for start in range(0, view.rows, step):
        yield start, view.fetch(start, min(start + step, view.rows)).astype(np.float32, copy=False)


def weight_facts(view: Weight, *, name: str, factor: float = 1.0) -> WeightFacts:
    """The facts of a tensor times `factor`, multiplied in float32; `name` chooses the sketch's signs.

    Raises:
        NonFiniteValues: NaN or infinity among the values.
    """
    digests, sketcher, energy = RoundedDigests(), Sketcher(name), 0.0
    kept: list[np.ndarray] = []
    for _, values in value_chunks(view):
        scaled = values if factor == 1.0 else np.multiply(values, np.float32(factor), dtype=np.float32)
        digests.update(scaled)
        energy += float(np.square(scaled, dtype=np.float64).sum())
        if scaled.ndim == 2:
            sketcher.add(scaled)
        else:
            kept.append(scaled)
    if not math.isfinite(energy):
        raise NonFiniteValues(f"{view.name}: the weight holds NaN or infinity")
    vector = np.concatenate(kept) if kept else None
    sketch = None if kept else sketcher.sketch().astype(FLOAT32)
    return WeightFacts(tuple(view.shape), digests.digests(), energy, vector, sketch)


def _encoded(array: np.ndarray | None) -> str | None:
    return None if array is None else base64.b64encode(array.astype(FLOAT32).tobytes()).decode()


def _decoded(text: object) -> np.ndarray | None:
    if text is None:
        return None
    if not isinstance(text, str):
        raise ValueError("not base64")
    return np.frombuffer(base64.b64decode(text, validate=True), FLOAT32)
