"""The seam of number formats: `Scheme`, how the codes of a weight become its values.

    value = scale[group] * level(code) + offset[group]

The parameters that a scheme stores beside the codes (a scale and an integer zero point, a scale and a minimum, scales
of scales) come down to one scale and one offset for every group. A level is the code itself, counted from a zero point,
or an entry of a table. A scheme is pure data with a JSON round trip. Each is one file in `quantkit/tensors/schemes/`
and is found by the file's name.

Methods work on `Fit`s: scale, first level and offset of every group, in float32. They ask the scheme for candidates
and for the nearest scale that it can store, and hand the result back to be stored. A new scheme changes none of their
loops.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

import ml_dtypes
import numpy as np

from quantkit import discovery
from quantkit.errors import UnsupportedSpec

if TYPE_CHECKING:
    from torch import Tensor

SCALE_DTYPES: Mapping[str, np.dtype] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
}
SCALE_LIMITS: Mapping[str, tuple[float, float]] = {
    "float16": (2.0**-24, 65504.0),
    "bfloat16": (2.0**-24, 65280.0),
    "float32": (2.0**-126, 3.0e38),
}
"""Smallest and largest scale that is stored. A bfloat16 scale is one that float16 holds as well."""
PER_ROW = -1
"""The group size of one group per row."""
DIGEST_ELEMENTS = 1 << 18
"""Codes that are hashed at a time: their levels stay in a core's second-level cache."""
MAX_GROUP_SIZE = 1 << 24
"""No matrix has more columns."""
ROOM = "quantkit.tensors.schemes"
DEFAULT_KIND = "affine-groups"
"""The scheme of JSON that names no kind."""

Shapes = Mapping[str, tuple[np.dtype, tuple[int, ...]]]
"""Parameter to dtype and shape."""


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """What the levels of some groups become weights with: float32 tensors of one shape, such as [groups, rows].

    scale: of every group. first: the level of code 0 where it differs from group to group, else None. offset: None
    where it is 0 for all. shared: what the scheme keeps for several groups at once, by name, repeated for each group.
    """

    scale: Tensor
    first: Tensor | None = None
    offset: Tensor | None = None
    shared: Mapping[str, Tensor] | None = None

    def part(self, index: Any) -> Fit:  # noqa: ANN401 - whatever a tensor is indexed with
        """Some of the groups; shares memory."""
        shared = {name: x[index] for name, x in self.shared.items()} if self.shared is not None else None
        first = self.first[index] if self.first is not None else None
        return Fit(self.scale[index], first, self.offset[index] if self.offset is not None else None, shared)


class Levels(Protocol):
    """The levels that the codes of some groups can have."""

    def nearest_(self, x: Tensor) -> Tensor:
        """Move every element of float32 `x` to its nearest level, in place, and return `x`."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class UniformLevels:
    """Consecutive integers from `low` to `high`; tensors where they differ from group to group."""

    low: Tensor | float
    high: Tensor | float

    def nearest_(self, x: Tensor) -> Tensor:
        """See `Levels`."""
        return x.round_().clamp_(self.low, self.high)  # type: ignore[arg-type]


class Scheme(ABC):
    """How codes become weights: a frozen dataclass, whose fields are its settings. Equal settings, equal schemes."""

    kind: ClassVar[str]
    """Its name, that of its file with `-` for `_`."""
    factors: ClassVar[tuple[str, ...]] = ("scale",)
    """Names of the arrays that grow with the weights: all of them times a number, and the weights are."""
    bits: int
    """Width of a stored code; codes are below 2**bits."""
    group_size: int
    """Consecutive input columns of a row that share their parameters; `PER_ROW` = the whole row."""
    scale_dtype: str
    """One of `SCALE_DTYPES`: that of the stored scales."""

    def check_settings(self) -> None:
        """Raises `UnsupportedSpec` for a value that no scheme takes."""
        if not 2 <= self.bits <= 8:
            raise UnsupportedSpec(f"bits must be from 2 to 8, is {self.bits}")
        if self.group_size != PER_ROW and not 1 <= self.group_size <= MAX_GROUP_SIZE:
            raise UnsupportedSpec(
                f"group_size must be from 1 to {MAX_GROUP_SIZE:,}, or -1 for one group per row, is {self.group_size}"
            )
        if self.scale_dtype not in SCALE_DTYPES:
            raise UnsupportedSpec(f"scale_dtype must be one of {', '.join(SCALE_DTYPES)}, is {self.scale_dtype!r}")

    def group_width(self, cols: int) -> int:
        """Columns per group in a matrix of `cols` columns."""
        return cols if self.group_size == PER_ROW else self.group_size

    def groups(self, cols: int, *, name: str = "weight") -> int:
        """Groups per row; raises `UnsupportedSpec` for widths that the group size does not divide."""
        width = self.group_width(cols)
        if cols % width:
            raise UnsupportedSpec(
                f"{name}: {cols} columns are not a multiple of group_size {width}",
                hint="choose a group_size that divides every layer's input width, or -1",
            )
        return cols // width

    @property
    @abstractmethod
    def span(self) -> float:
        """Distance between the lowest and the highest level, in steps of the scale."""

    # Arrays: what a container stores.

    @abstractmethod
    def parameters(self, rows: int, cols: int) -> Shapes:
        """The arrays beside the codes of a matrix; raises as `groups`."""

    def stored_bits(self, rows: int, cols: int) -> int:
        """Bits of codes and parameters of a matrix, padding and layout aside."""
        shapes = self.parameters(rows, cols).values()
        return rows * cols * self.bits + sum(8 * dtype.itemsize * math.prod(shape) for dtype, shape in shapes)

    @abstractmethod
    def check(self, codes: np.ndarray, arrays: Mapping[str, np.ndarray]) -> None:
        """Refuse values that this scheme does not have; dtypes and shapes have been checked.

        Raises:
            UnsupportedSpec: a code or parameter out of range. NonFiniteValues: one that is no number.
        """

    @abstractmethod
    def values(self, codes: np.ndarray, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """The float32 weights (rows, cols) that an engine computes with."""

    @abstractmethod
    def effective(self, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Of every group its scale, and the value of code 0: float32 (rows, groups)."""

    def zero_code(self, arrays: Mapping[str, np.ndarray]) -> int | None:
        """The code, 0 to 255, that stands for 0 in all groups alike; None where it differs, or is no code."""
        scale, offset = self.effective(arrays)
        used = np.flatnonzero(scale)
        code = np.rint(-offset.flat[used[0]] / scale.flat[used[0]]) if used.size else np.float32(-1)
        alike = 0 <= code <= 255 and (offset == scale * -code).all()
        return int(code) if alike else None

    def numbers(self, codes: np.ndarray, arrays: Mapping[str, np.ndarray]) -> Iterator[np.ndarray]:
        """What engines compute with, as `QuantizedTensor.numbers_digest` hashes it: little-endian arrays in order.

        Where one code stands for 0 everywhere (symmetric codes), it is what stays when a container stores the codes in
        more bits, the scales for smaller groups, or another scale for nothing but zeros: the levels, int8 (rows, cols);
        then of every run of weights, zeros aside, that have one scale, the place of its first, int64, and the scale,
        float32. Elsewhere it is the codes, uint8 (rows, cols), and of every group its scale and the value of code 0,
        float32 (rows, groups).
        """
        scale, offset = (np.ascontiguousarray(x.astype("<f4")) for x in self.effective(arrays))
        zero = self.zero_code(arrays)
        if zero is None or not self._are_levels(codes, zero):
            yield from (codes, scale, offset)
            return
        grouped = codes.reshape(scale.size, -1)
        differ = np.empty(scale.size, np.bool_)
        step = max(1, DIGEST_ELEMENTS // grouped.shape[1])
        for start in range(0, scale.size, step):
            levels = grouped[start : start + step] - np.uint8(zero)  # wraps
            differ[start : start + step] = levels.any(axis=1)
            yield levels.view(np.int8)
        used = np.flatnonzero(differ)
        scales = scale.reshape(-1)[used]
        starts = np.ones(scales.shape, bool)
        starts[1:] = np.diff(scales.view("<u4")) != 0
        first = used[starts]
        places = first.astype("<i8") * grouped.shape[1]
        later = grouped[first, 0] == zero  # few: whole groups are compared for these alone
        places[later] += (grouped[first[later]] != zero).argmax(axis=1)
        yield places
        yield scales[starts]

    def _are_levels(self, codes: np.ndarray, zero: int) -> bool:
        """Whether code - zero is from -128 to 127 for all `codes`; they are read only where the width does not tell."""
        low = zero <= 128 or int(codes.min()) - zero >= -128
        return low and (2**self.bits - 1 - zero <= 127 or int(codes.max()) - zero <= 127)

    @abstractmethod
    def covering(self, groups: np.ndarray) -> dict[str, np.ndarray]:
        """Parameters whose levels cover the range of every group.

        Args:
            groups: finite float32 (rows, groups, width).

        Raises:
            ValueOutOfRange: a parameter beyond the largest number of its dtype.
        """

    @abstractmethod
    def nearest(self, groups: np.ndarray, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """The code nearest to every weight of `groups` (rows, groups, width), ties to even: uint8 of that shape."""

    # Fits: what a solver works with. Tensors of any device; torch is imported where it is needed.

    @abstractmethod
    def neutral(self, ones: Tensor) -> Fit:
        """What groups of nothing but zeros get; `ones` are float32 ones of the fit's shape."""

    @abstractmethod
    def candidates(self, low: Tensor, high: Tensor) -> Iterator[Fit]:
        """What to try for groups whose weights reach from `low` to `high`, both float32 of the fit's shape."""

    @abstractmethod
    def levels_of(self, fit: Fit) -> Levels:
        """The levels of groups, for numbers that broadcast with `fit.scale`."""

    @abstractmethod
    def rounded_scale(self, scale: Tensor, fit: Fit) -> Tensor:
        """The nearest scales that can be stored for the groups of `fit`: never zero, never infinite."""

    def rounded_offset(self, offset: Tensor, fit: Fit) -> Tensor:
        """The nearest offsets that can be stored for the groups of `fit`."""
        return offset

    @property
    def groups_sharing(self) -> int:
        """How many groups share factors, one after the other: 1 where each stands alone, and what follows is unused."""
        return 1

    def neighbours(self, fit: Fit) -> Iterator[Fit]:
        """Grids near that of a group which shares factors, itself the first, all of which can be stored."""
        raise NotImplementedError(f"the groups of {self} share nothing")

    def directions(self, steps: Tensor, fit: Fit) -> dict[str, Tensor]:
        """Of groups that share factors, by factor what it multiplies in their weights: float32 of the shape of `steps`.

        Args:
            steps: levels, [groups, width, rows].
            fit: of these groups, [groups, rows].
        """
        raise NotImplementedError(f"the groups of {self} share nothing")

    def rounded_factor(self, factor: Tensor) -> Tensor:
        """The nearest shared factor that can be stored."""
        raise NotImplementedError(f"the groups of {self} share nothing")

    def take_factors(self, fit: Fit, factors: Mapping[str, Tensor]) -> None:
        """Give groups [groups, rows] other factors [rows], in place; their integers stay."""
        raise NotImplementedError(f"the groups of {self} share nothing")

    def settled(self, fit: Fit) -> Fit:
        """`fit` [rows, groups], chosen group by group, as it can be stored; the same where groups stand alone."""
        return fit

    @abstractmethod
    def stored(self, fit: Fit) -> dict[str, Tensor]:
        """The parameters of a settled fit, as float32 tensors of its shape that their dtypes hold exactly."""

    @abstractmethod
    def fit(self, arrays: Mapping[str, np.ndarray]) -> Fit:
        """Inverse of `stored`: what (rows, groups) parameters amount to, on the CPU."""

    @abstractmethod
    def codes(self, levels: Tensor, fit: Fit) -> Tensor:
        """The codes of levels that broadcast with `fit.scale`: integral float32."""

    # Data.

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """A JSON object; `scheme_from_json` inverts it."""

    def with_settings(self, **settings: Any) -> Scheme:  # noqa: ANN401 - of the type of the field
        """The same kind of scheme with some settings changed; raises `UnsupportedSpec` for one that there is not."""
        try:
            return replace(self, **settings)  # type: ignore[type-var]
        except TypeError:
            raise UnsupportedSpec(f"{self.kind} has no such setting: {', '.join(sorted(settings))}") from None


def scheme_from_json(data: Mapping[str, Any]) -> Scheme:
    """Inverse of `Scheme.to_json`.

    Raises:
        UnsupportedSpec: an unknown kind, keys that it does not have, or values out of range.
    """
    settings = dict(data)
    kind = settings.pop("kind", DEFAULT_KIND)
    if kind not in discovery.names(ROOM):
        kinds = ", ".join(discovery.names(ROOM))
        raise UnsupportedSpec(f"unknown scheme {str(kind)[:80]!r}", hint=f"schemes: {kinds}")
    scheme = cast("type[Scheme]", discovery.load(ROOM, kind, "scheme"))
    kinds_of_setting = {field.name: field.type for field in fields(cast("Any", scheme))}
    for name, value in settings.items():
        if kinds_of_setting.get(name) != type(value).__name__:
            raise UnsupportedSpec(f"{kind} has no setting {name[:80]!r} of type {type(value).__name__}")
    try:
        return scheme(**settings)
    except TypeError:
        missing = sorted(set(kinds_of_setting) - set(settings))
        raise UnsupportedSpec(f"{kind} needs more settings: some of {', '.join(missing)}") from None


def extremes(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest value of every group of [rows, groups, width], without NaN: each [rows, groups].

    Halves are laid onto each other, which numpy does several times faster than reducing short rows.
    """
    low = high = groups
    while low.shape[-1] > 1 and low.shape[-1] % 2 == 0:
        half = low.shape[-1] // 2
        low = np.minimum(low[..., :half], low[..., half:])
        high = np.maximum(high[..., :half], high[..., half:])
    return low.min(axis=-1), high.max(axis=-1)
