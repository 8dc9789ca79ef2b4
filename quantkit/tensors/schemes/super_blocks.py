"""Codes whose scales, and minima, are codes themselves, on a scale shared by 256 columns: llama.cpp's K-quants.

    with minima        weight ≈ (d * sub_scale) * code - dmin * sub_min        Q2_K, Q4_K, Q5_K
    about the middle   weight ≈ (d * sub_scale) * (code - 2**(bits - 1))       Q3_K, Q6_K
    of a table         weight ≈ (d * sub_scale) * level[code]                  IQ4_XS

d and dmin are float16, one for every super-block of 256 columns of a row; sub-scales and sub-minima are integers, one
for every group of 16 or 32. Products are rounded to float32 in the order that is written (ggml-quants.c,
`dequantize_row_*`).

Every group's best scale is searched as if it stood alone; then d and the integers are chosen that come nearest to all
of them (`settled`). From then on a scale moves in steps of d.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from quantkit.errors import NonFiniteValues, UnsupportedSpec, ValueOutOfRange
from quantkit.tensors.level_tables import LevelTable
from quantkit.tensors.scheme import SCALE_LIMITS, Fit, Levels, Scheme, Shapes, UniformLevels, extremes
from quantkit.tensors.shared_scales import nearest_multiples

if TYPE_CHECKING:
    from torch import Tensor

SUPER_COLUMNS = 256
"""Columns of a super-block."""
SHRINKS = (0.6, 0.7, 0.76, 0.81, 0.85, 0.89, 0.925, 0.955, 0.98, 1.0, 1.04)
"""Shares of the covering range that are tried."""
FLOAT16 = np.dtype(np.float16)


@dataclass(frozen=True, slots=True, kw_only=True)
class SuperBlocks(Scheme):
    """Evenly spaced levels per group of 16 or 32 columns, of which 256 columns share the scale of the scales.

    bits: of a code. group_size: 16 or 32. scale_bits: of a sub-scale and of a sub-minimum.
    minima: levels rise from a minimum that is never above 0; else they lie about 0, and sub-scales have a sign.
    table: levels of `quantkit.tensors.level_tables` in place of evenly spaced ones; without minima.
    """

    kind: ClassVar[str] = "super-blocks"
    factors: ClassVar[tuple[str, ...]] = ("d", "dmin")

    bits: int
    group_size: int
    scale_bits: int
    minima: bool
    table: str = ""
    scale_dtype: str = "float16"

    def __post_init__(self) -> None:
        self.check_settings()
        if self.group_size not in (16, 32) or not 2 <= self.scale_bits <= 8 or self.scale_dtype != "float16":
            raise UnsupportedSpec("super-blocks have groups of 16 or 32, sub-scales of 2 to 8 bits and float16 scales")
        if self.table and (self.bits != 4 or self.minima):
            raise UnsupportedSpec("levels of a table have codes of 4 bits and no minima")
        if self.table:
            LevelTable(self.table)

    def groups(self, cols: int, *, name: str = "weight") -> int:
        """See `Scheme`: rows are whole super-blocks."""
        if cols % SUPER_COLUMNS:
            raise UnsupportedSpec(
                f"{name}: {cols} columns are not a multiple of {SUPER_COLUMNS}, a super-block",
                hint="choose a type of blocks of 32 for this weight, such as q5_0 or iq4_nl",
            )
        return cols // self.group_size

    @property
    def span(self) -> float:
        """See `Scheme`."""
        low, high = self._ends
        return high - low

    @property
    def _ends(self) -> tuple[float, float]:
        """The lowest and the highest level."""
        if self.table:
            return LevelTable(self.table).ends
        return -float(self.middle), float(2**self.bits - 1 - self.middle)

    @property
    def middle(self) -> int:
        """The code of 0 where evenly spaced levels lie about it."""
        return 0 if self.minima else int(2 ** (self.bits - 1))

    @property
    def multiples(self) -> tuple[int, int]:
        """Least and greatest sub-scale."""
        return (0, 2**self.scale_bits - 1) if self.minima else (-(2 ** (self.scale_bits - 1)), _top(self.scale_bits))

    @property
    def groups_sharing(self) -> int:
        """See `Scheme`: those of a super-block."""
        return SUPER_COLUMNS // self.group_size

    def parameters(self, rows: int, cols: int) -> Shapes:
        """See `Scheme`: `d` and `dmin` (rows, super-blocks), `sub_scale` and `sub_min` (rows, groups)."""
        groups = self.groups(cols)
        shared, each = (rows, groups // self.groups_sharing), (rows, groups)
        kind: np.dtype = np.dtype(np.uint8 if self.minima else np.int8)
        found = {"d": (FLOAT16, shared), "sub_scale": (kind, each)}
        return found | ({"dmin": (FLOAT16, shared), "sub_min": (np.dtype(np.uint8), each)} if self.minima else {})

    def stored_bits(self, rows: int, cols: int) -> int:
        """See `Scheme`: integers take `scale_bits` each."""
        groups = rows * self.groups(cols)
        kinds = 2 if self.minima else 1
        return rows * cols * self.bits + kinds * groups * self.scale_bits + kinds * 16 * groups // self.groups_sharing

    def check(self, codes: np.ndarray, arrays: Mapping[str, np.ndarray]) -> None:
        """See `Scheme`."""
        if codes.size and int(codes.max()) >= 2**self.bits:
            raise UnsupportedSpec(f"a code exceeds {2**self.bits - 1}, the largest of {self}")
        least, most = self.multiples
        for name in ("sub_scale", "sub_min"):
            values = arrays.get(name, np.empty(0))
            if ((values < least) | (values > most)).any():
                raise UnsupportedSpec(f"a {name} lies outside {least} to {most}, those of {self}")
        for name in ("d", "dmin"):
            if name in arrays and not np.isfinite(arrays[name].astype(np.float32)).all():
                raise NonFiniteValues(f"a quantization scale {name} is NaN or infinite")

    def values(self, codes: np.ndarray, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """See the module's docstring; float32 (rows, cols)."""
        rows, cols = codes.shape
        scale, offset = self._factors(arrays)
        grouped = self._levels_of_codes(codes).reshape(rows, scale.shape[1], -1)
        grouped *= scale[:, :, None]
        if offset is not None:
            grouped += offset[:, :, None]
        return grouped.reshape(rows, cols)

    def _levels_of_codes(self, codes: np.ndarray) -> np.ndarray:
        """Float32 of the codes' shape, a copy."""
        if self.table:
            return LevelTable(self.table).of(codes)
        levels = codes.astype(np.float32)
        levels -= np.float32(self.middle)
        return levels

    def effective(self, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """See `Scheme`."""
        scale, offset = self._factors(arrays)
        return scale, scale * self._levels_of_codes(np.zeros((), np.uint8)) if offset is None else offset

    def zero_code(self, arrays: Mapping[str, np.ndarray]) -> int | None:
        """See `Scheme`: None where levels are not one apart."""
        return None if self.table else super(SuperBlocks, self).zero_code(arrays)

    def _factors(self, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
        def products(shared: str, each: str) -> np.ndarray:
            wide = np.repeat(arrays[shared].astype(np.float32), self.groups_sharing, axis=1)
            found: np.ndarray = wide * arrays[each].astype(np.float32)
            return found

        return products("d", "sub_scale"), -products("dmin", "sub_min") if self.minima else None

    def covering(self, groups: np.ndarray) -> dict[str, np.ndarray]:
        """See `Scheme`: parameters that come nearest to those that cover every group."""
        low, high = (ends.astype(np.float64) for ends in extremes(groups))
        if self.minima:
            low, high = np.minimum(low, 0), np.maximum(high, 0)
            return self._nearest_parameters((high - low) / self.span, low)
        reach = np.where(-low >= high, low, high)  # the lowest level is the farthest: it stands for the larger extreme
        return self._nearest_parameters(reach / self._ends[0], None)

    def _nearest_parameters(self, scale: np.ndarray, offset: np.ndarray | None) -> dict[str, np.ndarray]:
        """What is stored for these scales and offsets, (rows, groups); raises `ValueOutOfRange`."""
        rows = len(scale)
        least, most = self.multiples
        found: dict[str, np.ndarray] = {}
        kinds = [("d", "sub_scale", scale), *([("dmin", "sub_min", -offset)] if offset is not None else [])]
        for shared, each, wanted in kinds:
            largest = float(np.abs(wanted).max(initial=0)) / most
            if largest > SCALE_LIMITS["float16"][1]:
                raise ValueOutOfRange(f"a super-block needs a scale of {largest:.3g}; the largest float16 is 65504")
            parts = wanted.astype(np.float64).reshape(-1, self.groups_sharing)
            factor, multiples = nearest_multiples(parts, least, most, never_zero=shared == "d")
            dtype = np.uint8 if self.minima else np.int8
            found |= {shared: factor.reshape(rows, -1), each: multiples.reshape(rows, -1).astype(dtype)}
        return found

    def nearest(self, groups: np.ndarray, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """See `Scheme`."""
        scale, offset = self._factors(arrays)
        values = (groups if offset is None else groups - offset[..., None]) / scale[..., None]
        if self.table:
            return LevelTable(self.table).nearest_codes(values)
        steps = np.rint(values) + self.middle
        codes: np.ndarray = np.clip(steps, 0, 2**self.bits - 1).astype(np.uint8)
        return codes

    def neutral(self, ones: Tensor) -> Fit:
        """See `Scheme`: scales so small that they do not count among those of a super-block."""
        least = ones * SCALE_LIMITS["float16"][0]
        return Fit(least, offset=ones * 0 if self.minima else None)

    def candidates(self, low: Tensor, high: Tensor) -> Iterator[Fit]:
        """With minima the range, with 0 inside, shrunk about its middle; else as the symmetric `AffineGroups`."""
        import torch  # noqa: PLC0415 - planning and reading do without it

        least = SCALE_LIMITS["float16"][0]
        if not self.minima:
            covering = torch.maximum(-low, high).clamp(min=least * self.span) / max(-self._ends[0], self._ends[1] + 0.5)
            for sign in (1.0, -1.0):
                for shrink in SHRINKS:
                    yield Fit(covering * (sign * shrink))
            return
        low, high = low.clamp(max=0), high.clamp(min=0)
        middle, reach = (low + high) / 2, (high - low).clamp(min=least * self.span)
        for shrink in SHRINKS:
            scale = reach * (shrink / self.span)
            yield Fit(scale, offset=(middle - scale * (self.span / 2)).clamp(max=0))

    def levels_of(self, fit: Fit) -> Levels:
        """See `Scheme`."""
        return LevelTable(self.table).on(fit.scale.device) if self.table else UniformLevels(*self._ends)

    def rounded_scale(self, scale: Tensor, fit: Fit) -> Tensor:
        """See `Scheme`; as it is while groups stand alone."""
        if fit.shared is None:
            return scale
        least, most = self.multiples
        multiples = (scale / fit.shared["d"]).round_().clamp_(least, most)
        return multiples.masked_fill_(multiples == 0, 1.0).mul_(fit.shared["d"])

    def rounded_offset(self, offset: Tensor, fit: Fit) -> Tensor:
        """See `Scheme`; never above 0."""
        if fit.shared is None:
            return offset.clamp(max=0)
        least, most = self.multiples
        return (offset / -fit.shared["dmin"]).round_().clamp_(least, most).mul_(-fit.shared["dmin"])

    def neighbours(self, fit: Fit) -> Iterator[Fit]:
        """See `Scheme`: one more and one less of the sub-scale, and of the sub-minimum where there is one."""
        assert fit.shared is not None
        scales, offsets = self._integers(fit)
        least, most = self.multiples
        for step in (0.0, -1.0, 1.0):
            count = (scales + step).clamp(least, most)
            scale = count.masked_fill_(count == 0, 1.0) * fit.shared["d"]
            if offsets is None:
                yield Fit(scale, shared=fit.shared)
                continue
            for shift in (0.0, -1.0, 1.0):
                yield Fit(scale, None, (offsets + shift).clamp(least, most) * -fit.shared["dmin"], fit.shared)

    def _integers(self, fit: Fit) -> tuple[Tensor, Tensor | None]:
        """Sub-scales and sub-minimums of a settled fit."""
        assert fit.shared is not None
        scales = (fit.scale / fit.shared["d"]).round()
        return scales, None if fit.offset is None else (fit.offset / -fit.shared["dmin"]).round()

    def directions(self, steps: Tensor, fit: Fit) -> dict[str, Tensor]:
        """See `Scheme`: `d` and `dmin`."""
        scales, offsets = self._integers(fit)
        found = {"d": steps * scales[:, None]}
        return found if offsets is None else found | {"dmin": (-offsets)[:, None].expand_as(steps)}

    def rounded_factor(self, factor: Tensor) -> Tensor:
        """See `Scheme`: a float16, never 0; of the same sign, and above 0 with minima."""
        if self.minima:
            return factor.clamp(*SCALE_LIMITS["float16"]).half().float()
        magnitude = factor.abs().clamp(*SCALE_LIMITS["float16"]).half().float()
        return magnitude.copysign(factor)

    def take_factors(self, fit: Fit, factors: Mapping[str, Tensor]) -> None:
        """See `Scheme`."""
        assert fit.shared is not None
        scales, offsets = self._integers(fit)
        fit.scale.copy_(scales * factors["d"])
        if fit.offset is not None and offsets is not None:
            fit.offset.copy_(-offsets * factors["dmin"])
        for name, values in factors.items():
            fit.shared[name].copy_(values)

    def settled(self, fit: Fit) -> Fit:
        """See `Scheme`: the nearest multiples of the best d and dmin."""
        offset = None if fit.offset is None else fit.offset.double().cpu().numpy()
        found = self.fit(self._nearest_parameters(fit.scale.double().cpu().numpy(), offset))
        device = fit.scale.device
        shared = {name: x.to(device) for name, x in (found.shared or {}).items()}
        return Fit(found.scale.to(device), None, None if found.offset is None else found.offset.to(device), shared)

    def stored(self, fit: Fit) -> dict[str, Tensor]:
        """See `Scheme`; d and dmin stand once for each super-block."""
        assert fit.shared is not None
        d = fit.shared["d"]
        found = {"d": d[:, :: self.groups_sharing], "sub_scale": (fit.scale / d).round()}
        if fit.offset is not None:
            dmin = fit.shared["dmin"]
            found |= {"dmin": dmin[:, :: self.groups_sharing], "sub_min": (fit.offset / -dmin).round().abs()}
        return found

    def fit(self, arrays: Mapping[str, np.ndarray]) -> Fit:
        """See `Scheme`."""
        import torch  # noqa: PLC0415 - planning and reading do without it

        scale, offset = self._factors(arrays)
        names = [name for name in ("d", "dmin") if name in arrays]
        wide = {name: np.repeat(arrays[name].astype(np.float32), self.groups_sharing, axis=1) for name in names}
        return Fit(
            torch.from_numpy(scale),
            offset=None if offset is None else torch.from_numpy(offset),
            shared={name: torch.from_numpy(x) for name, x in wide.items()},
        )

    def codes(self, levels: Tensor, fit: Fit) -> Tensor:
        """See `Scheme`."""
        return LevelTable(self.table).codes(levels) if self.table else levels + float(self.middle)

    def to_json(self) -> dict[str, Any]:
        """See `Scheme`."""
        return {"kind": self.kind, **asdict(self)}

    def __str__(self) -> str:
        return f"{self.table or f'int{self.bits}'} g{self.group_size} of super-blocks"


def _top(bits: int) -> int:
    return int(2 ** (bits - 1) - 1)


SCHEME = SuperBlocks
