"""Integer codes with a scale and a stored value of code 0 per group: ggml's Q4_1 and Q5_1.

    weight ≈ scale * code + offset,  code in 0 .. 2**bits - 1

The offset is a float of its own and need not be a multiple of the scale, so zero need not be among the levels:

    scale = (max - min) / (levels - 1), offset = min

A scale is never zero: a group whose weights are all alike gets 1, and the code 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from quantkit.errors import NonFiniteValues, UnsupportedSpec, ValueOutOfRange
from quantkit.tensors.scheme import (
    PER_ROW,
    SCALE_DTYPES,
    SCALE_LIMITS,
    Fit,
    Levels,
    Scheme,
    Shapes,
    UniformLevels,
    extremes,
)

if TYPE_CHECKING:
    from torch import Tensor

SHRINKS = (0.7, 0.76, 0.81, 0.85, 0.89, 0.925, 0.955, 0.98, 1.0, 1.04)
"""Shares of the covering range that are tried, about its middle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OffsetGroups(Scheme):
    """Evenly spaced levels that start anywhere, per group of `group_size` consecutive input columns of one row.

    bits: 2 to 8; there are 2**bits levels.
    group_size: columns that share scale and offset; -1 = the whole row.
    scale_dtype: that of scales and offsets.
    """

    kind: ClassVar[str] = "offset-groups"
    factors: ClassVar[tuple[str, ...]] = ("scale", "offset")

    bits: int
    group_size: int
    scale_dtype: str = "float16"

    def __post_init__(self) -> None:
        self.check_settings()

    @property
    def span(self) -> float:
        """See `Scheme`."""
        return float(2**self.bits - 1)

    def parameters(self, rows: int, cols: int) -> Shapes:
        """See `Scheme`: `scale` and `offset`, both (rows, groups) of `scale_dtype`."""
        entry = (SCALE_DTYPES[self.scale_dtype], (rows, self.groups(cols)))
        return {"scale": entry, "offset": entry}

    def check(self, codes: np.ndarray, arrays: Mapping[str, np.ndarray]) -> None:
        """See `Scheme`."""
        if codes.size and int(codes.max()) > self.span:
            raise UnsupportedSpec(f"a code exceeds {self.span:.0f}, the largest of {self}")
        for name, values in arrays.items():
            if not np.isfinite(values.astype(np.float32)).all():
                raise NonFiniteValues(f"a quantization {name} is NaN or infinite")

    def values(self, codes: np.ndarray, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """scale * code, plus offset, each rounded to float32, as ggml computes it; (rows, cols)."""
        rows, cols = codes.shape
        grouped = codes.reshape(rows, arrays["scale"].shape[1], -1).astype(np.float32)
        grouped *= arrays["scale"].astype(np.float32)[:, :, None]
        grouped += arrays["offset"].astype(np.float32)[:, :, None]
        return grouped.reshape(rows, cols)

    def effective(self, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """See `Scheme`."""
        return arrays["scale"].astype(np.float32), arrays["offset"].astype(np.float32)

    def covering(self, groups: np.ndarray) -> dict[str, np.ndarray]:
        """See `Scheme`."""
        low, high = (x.astype(np.float64) for x in extremes(groups))
        least, most = SCALE_LIMITS[self.scale_dtype]
        largest = np.maximum((high - low) / self.span, np.abs(low))
        if largest.size and largest.max() > most:
            raise ValueOutOfRange(
                f"a group needs a scale or offset of {largest.max():.3g}; the largest {self.scale_dtype} is {most:.3g}",
                hint="look at the checkpoint: trained weights are seldom that large",
            )
        dtype = SCALE_DTYPES[self.scale_dtype]
        scale = np.where(high == low, 1, np.maximum((high - low) / self.span, least)).astype(dtype)
        return {"scale": scale, "offset": low.astype(dtype)}

    def nearest(self, groups: np.ndarray, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """See `Scheme`."""
        scale, offset = (x[..., None] for x in self.effective(arrays))
        codes: np.ndarray = np.clip(np.rint((groups - offset) / scale), 0, self.span).astype(np.uint8)
        return codes

    def neutral(self, ones: Tensor) -> Fit:
        """See `Scheme`."""
        return Fit(ones, offset=ones * 0)

    def candidates(self, low: Tensor, high: Tensor) -> Iterator[Fit]:
        """The range shrunk about its middle."""
        middle, reach = (low + high) / 2, high - low
        for shrink in SHRINKS:
            scale = self._nearest_scale(reach * (shrink / self.span))
            yield Fit(scale, offset=self._nearest_offset(middle - scale * (self.span / 2)))

    def levels_of(self, fit: Fit) -> Levels:
        """See `Scheme`: the codes themselves."""
        return UniformLevels(0.0, self.span)

    def rounded_scale(self, scale: Tensor, fit: Fit) -> Tensor:
        """See `Scheme`; scales are positive."""
        return self._nearest_scale(scale)

    def rounded_offset(self, offset: Tensor, fit: Fit) -> Tensor:
        """See `Scheme`."""
        return self._nearest_offset(offset)

    def _nearest_scale(self, scale: Tensor) -> Tensor:
        return self._as_stored(scale.clamp(*SCALE_LIMITS[self.scale_dtype]))

    def _nearest_offset(self, offset: Tensor) -> Tensor:
        most = SCALE_LIMITS[self.scale_dtype][1]
        return self._as_stored(offset.clamp(-most, most))

    def _as_stored(self, values: Tensor) -> Tensor:
        if self.scale_dtype == "float32":
            return values
        return values.half().float() if self.scale_dtype == "float16" else values.bfloat16().float()

    def stored(self, fit: Fit) -> dict[str, Tensor]:
        """See `Scheme`."""
        return {"scale": fit.scale, "offset": fit.offset if fit.offset is not None else fit.scale.new_zeros(())}

    def fit(self, arrays: Mapping[str, np.ndarray]) -> Fit:
        """See `Scheme`."""
        import torch  # noqa: PLC0415 - planning and reading do without it

        scale, offset = (torch.from_numpy(x.copy()) for x in self.effective(arrays))
        return Fit(scale, offset=offset)

    def codes(self, levels: Tensor, fit: Fit) -> Tensor:
        """See `Scheme`."""
        return levels

    def to_json(self) -> dict[str, Any]:
        """See `Scheme`."""
        return {"kind": self.kind, **asdict(self)}

    def __str__(self) -> str:
        group = "row" if self.group_size == PER_ROW else f"g{self.group_size}"
        return f"int{self.bits} {group} offset"


SCHEME = OffsetGroups
