"""Integer codes with a scale and an integer zero point per group: GPTQ, AWQ, compressed-tensors, Marlin, Q4_0, Q8_0.

    weight ≈ scale * (code - zero),  code and zero in 0 .. levels - 1

    symmetric:   scale = absmax / ((levels - 1) / 2), zero = levels // 2
    asymmetric:  scale = (max - min) / (levels - 1), zero = round(-min / scale), with 0 inside [min, max]

A scale is rounded to its dtype before any code is chosen from it. It is never zero: a group that is too small for the
dtype gets the smallest subnormal, a group of zeros gets 1 and the code of zero, which is exact. What is numpy here is
elementwise, so the same bits come out on every machine.
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

SHRINKS = (0.4, 0.5, 0.58, 0.65, 0.71, 0.76, 0.81, 0.85, 0.89, 0.925, 0.955, 0.98, 1.0, 1.04)
"""Shares of the covering scale that are tried."""
TERNARY_SHRINKS = tuple(0.12 * 1.12**step for step in range(20))
"""The same for three levels, whose best scale lies far below the largest weight of a long row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AffineGroups(Scheme):
    """Evenly spaced levels per group of `group_size` consecutive input columns of one row, 0 among them.

    bits: 2 to 8; there are 2**bits levels.
    group_size: columns that share one scale; -1 = the whole row.
    symmetric: the zero point is always `midpoint`.
    scale_dtype: that of the scales, to which they are rounded BEFORE codes are chosen, so that every container holds
        the same values.
    ternary: three levels, -scale, 0 and scale; symmetric, in codes of 2 bits.
    """

    kind: ClassVar[str] = "affine-groups"

    bits: int
    group_size: int
    symmetric: bool = True
    scale_dtype: str = "float16"
    ternary: bool = False

    def __post_init__(self) -> None:
        self.check_settings()
        if self.ternary and (self.bits != 2 or not self.symmetric):
            raise UnsupportedSpec("ternary weights are symmetric and have codes of 2 bits")

    @property
    def levels(self) -> int:
        """Number of codes, 2**bits or 3."""
        return 3 if self.ternary else int(2**self.bits)

    @property
    def midpoint(self) -> int:
        """The zero point of a symmetric scheme."""
        return self.levels // 2

    @property
    def span(self) -> float:
        """See `Scheme`."""
        return float(self.levels - 1)

    def parameters(self, rows: int, cols: int) -> Shapes:
        """See `Scheme`: `scale`, and `zero` in uint8, both (rows, groups)."""
        shape = (rows, self.groups(cols))
        return {"scale": (SCALE_DTYPES[self.scale_dtype], shape), "zero": (np.dtype(np.uint8), shape)}

    def stored_bits(self, rows: int, cols: int) -> int:
        """See `Scheme`: zero points take `bits` each, and none where they are all alike."""
        groups = rows * self.groups(cols)
        scales = groups * 8 * SCALE_DTYPES[self.scale_dtype].itemsize
        return rows * cols * self.bits + scales + (0 if self.symmetric else groups * self.bits)

    def check(self, codes: np.ndarray, arrays: Mapping[str, np.ndarray]) -> None:
        """See `Scheme`. A scale may be negative or zero."""
        zero = arrays["zero"]
        if codes.size and max(int(codes.max()), int(zero.max())) >= self.levels:
            raise UnsupportedSpec(f"a code or zero point exceeds {self.levels - 1}, the largest of {self}")
        if self.symmetric and not (zero == self.midpoint).all():
            raise UnsupportedSpec(f"symmetric int{self.bits} has a zero point other than {self.midpoint}")
        if not np.isfinite(arrays["scale"].astype(np.float32)).all():
            raise NonFiniteValues("a quantization scale is NaN or infinite")

    def values(self, codes: np.ndarray, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """scale * (codes - zero) in float32, (rows, cols); each value is one correctly rounded product."""
        rows, cols = codes.shape
        grouped = codes.reshape(rows, arrays["scale"].shape[1], -1).astype(np.float32)
        grouped -= arrays["zero"].astype(np.float32)[:, :, None]
        grouped *= arrays["scale"].astype(np.float32)[:, :, None]
        return grouped.reshape(rows, cols)

    def effective(self, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """See `Scheme`."""
        scale = arrays["scale"].astype(np.float32)
        return scale, scale * -arrays["zero"].astype(np.float32)

    def zero_code(self, arrays: Mapping[str, np.ndarray]) -> int | None:
        """See `Scheme`."""
        zero = arrays["zero"]
        return int(zero.flat[0]) if zero.size and (zero == zero.flat[0]).all() else None

    def covering(self, groups: np.ndarray) -> dict[str, np.ndarray]:
        """See `Scheme`."""
        low, high = (ends.astype(np.float64) for ends in extremes(groups))
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        reach = 2 * np.maximum(high, -low) if self.symmetric else high - low
        scale = self._rounded(reach / self.span)
        if self.symmetric:
            return {"scale": scale, "zero": np.full(scale.shape, self.midpoint, np.uint8)}
        zero = np.rint(-low / scale.astype(np.float64))
        return {"scale": scale, "zero": np.minimum(zero, self.span).astype(np.uint8)}

    def _rounded(self, wanted: np.ndarray) -> np.ndarray:
        least, most = SCALE_LIMITS[self.scale_dtype]
        if wanted.size and wanted.max() > most:
            raise ValueOutOfRange(
                f"a group needs a scale of {wanted.max():.3g}; the largest {self.scale_dtype} is {most:.3g}",
                hint="look at the checkpoint: trained weights are seldom that large",
            )
        clipped = np.maximum(wanted, least)
        if self.scale_dtype == "bfloat16":
            clipped = clipped.astype(np.float16)  # so that engines that compute in either dtype hold the same number
        rounded: np.ndarray = np.where(wanted == 0, 1, clipped).astype(SCALE_DTYPES[self.scale_dtype])
        return rounded

    def nearest(self, groups: np.ndarray, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """See `Scheme`."""
        steps = groups / arrays["scale"].astype(np.float32)[..., None]
        np.rint(steps, out=steps)
        steps += arrays["zero"].astype(np.float32)[..., None]
        np.clip(steps, 0, self.levels - 1, out=steps)
        return steps.astype(np.uint8)

    def neutral(self, ones: Tensor) -> Fit:
        """See `Scheme`."""
        return Fit(ones, None if self.symmetric else ones * -float(self.midpoint))

    def candidates(self, low: Tensor, high: Tensor) -> Iterator[Fit]:
        """Symmetric: the covering scale shrunk, with both signs; else both ends of the range shrunk together.

        The levels -8 .. 7 reach further on their negative side; a negative scale turns that side towards the larger
        extreme. Ternary levels reach equally far, so there is nothing to turn.
        """
        import torch  # noqa: PLC0415 - planning and reading do without it

        low, high = low.clamp(max=0), high.clamp(min=0)  # zero has a code of its own
        if self.symmetric:
            covering = torch.maximum(-low, high) / (self.span / 2)
            for sign in (1.0,) if self.ternary else (1.0, -1.0):
                for shrink in TERNARY_SHRINKS if self.ternary else SHRINKS:
                    yield Fit(self._nearest_scale(covering * (sign * shrink)))
            return
        step = (high - low) / self.span
        for shrink in SHRINKS:
            scale = self._nearest_scale(step * shrink)
            yield Fit(scale, torch.div(-low * shrink, scale).round_().clamp_(0, self.span).neg_())

    def levels_of(self, fit: Fit) -> Levels:
        """See `Scheme`: steps, counted from the zero point."""
        if fit.first is None:
            return UniformLevels(-float(self.midpoint), float(self.levels - 1 - self.midpoint))
        return UniformLevels(fit.first, fit.first + self.span)

    def rounded_scale(self, scale: Tensor, fit: Fit) -> Tensor:
        """See `Scheme`; the sign is kept."""
        return self._nearest_scale(scale)

    def _nearest_scale(self, scale: Tensor) -> Tensor:
        import torch  # noqa: PLC0415 - planning and reading do without it

        magnitude = scale.abs().clamp(*SCALE_LIMITS[self.scale_dtype])
        if self.scale_dtype != "float32":
            magnitude = magnitude.half().float()  # bfloat16 scales as well, so that both dtypes hold the result
        if self.scale_dtype == "bfloat16":
            magnitude = magnitude.bfloat16().float()
        return torch.where(scale < 0, -magnitude, magnitude)

    def stored(self, fit: Fit) -> dict[str, Tensor]:
        """See `Scheme`."""
        zero = -fit.first if fit.first is not None else fit.scale.new_full(fit.scale.shape, float(self.midpoint))
        return {"scale": fit.scale, "zero": zero}

    def fit(self, arrays: Mapping[str, np.ndarray]) -> Fit:
        """See `Scheme`."""
        import torch  # noqa: PLC0415 - planning and reading do without it

        scale, zero = (torch.from_numpy(arrays[name].astype(np.float32)) for name in ("scale", "zero"))
        return Fit(scale, None if self.symmetric else -zero)

    def codes(self, levels: Tensor, fit: Fit) -> Tensor:
        """See `Scheme`."""
        return levels + float(self.midpoint) if fit.first is None else levels - fit.first

    def with_settings(self, **settings: Any) -> Scheme:  # noqa: ANN401 - of the type of the field
        """See `Scheme`; with more bits, a ternary scheme becomes one that has as many levels as its codes."""
        ternary = self.ternary and settings.get("bits", self.bits) == self.bits
        return super(AffineGroups, self).with_settings(**{"ternary": ternary, **settings})

    def to_json(self) -> dict[str, Any]:
        """See `Scheme`. What is not ternary has the four settings that files of all versions know."""
        settings = asdict(self)
        return settings if self.ternary else {key: settings[key] for key in settings if key != "ternary"}

    def __str__(self) -> str:
        group = "row" if self.group_size == PER_ROW else f"g{self.group_size}"
        if self.ternary:
            return f"ternary {group}"
        return f"int{self.bits} {group} {'sym' if self.symmetric else 'asym'}"


INT4 = AffineGroups(bits=4, group_size=128)
"""What most engines have kernels for."""
TERNARY = AffineGroups(bits=2, group_size=PER_ROW, scale_dtype="bfloat16", ternary=True)
"""As BitCPM is trained: a scale per row, which bfloat16 files hold exactly."""


def affine(name: str, scheme: Scheme, *, container: str) -> AffineGroups:
    """`scheme` of the weight `name`, for a container whose zero points are integers.

    Raises:
        UnsupportedSpec: it is another scheme.
    """
    if isinstance(scheme, AffineGroups):
        return scheme
    raise UnsupportedSpec(
        f"{name}: {container} holds integer codes with an integer zero point, not {scheme}",
        hint="export gguf, or dense weights with `export hf`",
    )


SCHEME = AffineGroups
