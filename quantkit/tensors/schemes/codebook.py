"""Codes of 4 bits for levels that are not evenly spaced, with a scale for every 32 columns: IQ4_NL, MXFP4.

    weight ≈ scale * level[code]

The scale is a float16 of either sign, or a power of two (OCP's E8M0). IQ4_NL's levels lie denser about 0, where most
weights are; those of MXFP4 are the numbers of a float of 4 bits (`quantkit.tensors.level_tables`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from quantkit.errors import NonFiniteValues, UnsupportedSpec, ValueOutOfRange
from quantkit.tensors.level_tables import LevelTable
from quantkit.tensors.scheme import SCALE_DTYPES, SCALE_LIMITS, Fit, Levels, Scheme, Shapes, extremes

if TYPE_CHECKING:
    from torch import Tensor

SHRINKS = (0.6, 0.68, 0.74, 0.79, 0.83, 0.87, 0.9, 0.93, 0.96, 1.0, 1.04, 1.08)
"""Shares of the covering scale that are tried."""
EXPONENTS = (-126, 126)
"""Of the powers of two that are chosen."""
LEAST_POWER = 2.0**-128
"""That a byte holds, which blocks of zeros may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Codebook(Scheme):
    """Levels of a table per group of 32 columns.

    table: a name of `quantkit.tensors.level_tables.TABLES`. powers: scales are powers of two, kept in float32.
    """

    kind: ClassVar[str] = "codebook"

    table: str = "iq4-nl"
    powers: bool = False
    bits: int = 4
    group_size: int = 32
    scale_dtype: str = "float16"

    def __post_init__(self) -> None:
        self.check_settings()
        if self.bits != 4 or self.scale_dtype != ("float32" if self.powers else "float16"):
            raise UnsupportedSpec("codebooks have codes of 4 bits, and scales in float16, or powers of two in float32")
        LevelTable(self.table)

    @property
    def span(self) -> float:
        """See `Scheme`."""
        low, high = LevelTable(self.table).ends
        return high - low

    def parameters(self, rows: int, cols: int) -> Shapes:
        """See `Scheme`: `scale`, (rows, groups)."""
        return {"scale": (SCALE_DTYPES[self.scale_dtype], (rows, self.groups(cols)))}

    def stored_bits(self, rows: int, cols: int) -> int:
        """See `Scheme`: a power of two takes a byte."""
        return rows * cols * self.bits + rows * self.groups(cols) * (8 if self.powers else 16)

    def check(self, codes: np.ndarray, arrays: Mapping[str, np.ndarray]) -> None:
        """See `Scheme`."""
        if codes.size and int(codes.max()) >= 2**self.bits:
            raise UnsupportedSpec(f"a code exceeds {2**self.bits - 1}, the largest of {self}")
        scale = arrays["scale"].astype(np.float32)
        if not np.isfinite(scale).all():
            raise NonFiniteValues("a quantization scale is NaN or infinite")
        if self.powers and not ((np.frexp(scale)[0] == 0.5) & (scale >= LEAST_POWER)).all():
            raise UnsupportedSpec(f"a scale of {self} is no power of two")

    def values(self, codes: np.ndarray, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """scale * level in float32, (rows, cols)."""
        rows, cols = codes.shape
        levels = LevelTable(self.table).of(codes).reshape(rows, arrays["scale"].shape[1], -1)
        levels *= arrays["scale"].astype(np.float32)[:, :, None]
        return levels.reshape(rows, cols)

    def effective(self, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """See `Scheme`."""
        scale = arrays["scale"].astype(np.float32)
        return scale, scale * LevelTable(self.table).levels[0]

    def zero_code(self, arrays: Mapping[str, np.ndarray]) -> int | None:
        """See `Scheme`: None, as levels are not one apart."""
        return None

    def covering(self, groups: np.ndarray) -> dict[str, np.ndarray]:
        """See `Scheme`: the lowest level, which lies farthest from 0, stands for the larger extreme."""
        low, high = (ends.astype(np.float64) for ends in extremes(groups))
        bottom, top = LevelTable(self.table).ends
        wanted = np.where(-low >= high, low, high) / bottom if -bottom > top else np.maximum(-low, high) / top
        if wanted.size and np.abs(wanted).max() > SCALE_LIMITS[self.scale_dtype][1]:
            raise ValueOutOfRange(
                f"a group needs a scale of {np.abs(wanted).max():.3g}, more than {self.scale_dtype} holds",
                hint="look at the checkpoint: trained weights are seldom that large",
            )
        return {"scale": self._as_stored(wanted)}

    def _as_stored(self, wanted: np.ndarray) -> np.ndarray:
        if self.powers:
            exponent = np.ceil(np.log2(np.maximum(np.abs(wanted), 2.0 ** EXPONENTS[0])))
            powers: np.ndarray = np.exp2(np.clip(exponent, *EXPONENTS)).astype(np.float32)
            return powers
        least = SCALE_LIMITS[self.scale_dtype][0]
        magnitude = np.maximum(np.abs(wanted), least)  # IQ4_NL has no level of 0: groups of zeros come out this small
        scale: np.ndarray = np.copysign(magnitude, wanted).astype(SCALE_DTYPES[self.scale_dtype])
        return scale

    def nearest(self, groups: np.ndarray, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """See `Scheme`."""
        return LevelTable(self.table).nearest_codes(groups / arrays["scale"].astype(np.float32)[..., None])

    def neutral(self, ones: Tensor) -> Fit:
        """See `Scheme`."""
        return Fit(ones)

    def candidates(self, low: Tensor, high: Tensor) -> Iterator[Fit]:
        """The covering scale shrunk, with both signs where the levels are not the same on both sides."""
        import torch  # noqa: PLC0415 - planning and reading do without it

        bottom, top = LevelTable(self.table).ends
        covering = torch.maximum(-low, high) / max(-bottom, top)
        for sign in (1.0, -1.0) if -bottom != top else (1.0,):
            for shrink in SHRINKS:
                scale = covering * (sign * shrink)
                yield Fit(self.rounded_scale(scale, Fit(scale)))

    def levels_of(self, fit: Fit) -> Levels:
        """See `Scheme`."""
        return LevelTable(self.table).on(fit.scale.device)

    def rounded_scale(self, scale: Tensor, fit: Fit) -> Tensor:
        """See `Scheme`; the sign is kept, and a power of two is positive."""
        import torch  # noqa: PLC0415 - planning and reading do without it

        if self.powers:
            return torch.exp2(scale.abs().clamp(min=2.0 ** EXPONENTS[0]).log2().round_().clamp_(*EXPONENTS))
        magnitude = scale.abs().clamp(*SCALE_LIMITS[self.scale_dtype]).half().float()
        return torch.where(scale < 0, -magnitude, magnitude)

    def stored(self, fit: Fit) -> dict[str, Tensor]:
        """See `Scheme`."""
        return {"scale": fit.scale}

    def fit(self, arrays: Mapping[str, np.ndarray]) -> Fit:
        """See `Scheme`."""
        import torch  # noqa: PLC0415 - planning and reading do without it

        return Fit(torch.from_numpy(arrays["scale"].astype(np.float32)))

    def codes(self, levels: Tensor, fit: Fit) -> Tensor:
        """See `Scheme`."""
        return LevelTable(self.table).codes(levels)

    def to_json(self) -> dict[str, Any]:
        """See `Scheme`."""
        return {"kind": self.kind, **asdict(self)}

    def __str__(self) -> str:
        return f"{self.table} g{self.group_size}"


SCHEME = Codebook
