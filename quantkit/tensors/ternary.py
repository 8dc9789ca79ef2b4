"""Weights that are ternary as they lie: dense values -s, 0 and s, one s for every group of columns of a row.

Quantization-aware training publishes such models in bfloat16 ("fake-quantized", BitCPM4). Training cuts rows into
groups of any width, and tensor parallelism cuts them again, so the width is not known: it is found, as the widest that
leaves one magnitude in every group. A zero's sign does not count: no product sees it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quantkit.progress import Progress, unwatched
from quantkit.tensors.packing import magnitude_patterns
from quantkit.tensors.scheme import PER_ROW, SCALE_LIMITS
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import TensorView
from quantkit.threads import ordered_map

NARROWEST = 16
"""Columns of the narrowest group: in narrower ones values that were never ternary may happen to be."""
FIRST_ROWS = 8
"""Rows that are looked at first: ordinary weights show there that they are not ternary."""


@dataclass(frozen=True, slots=True)
class TernaryWeights:
    """What was found among the linear weights of a model.

    found: scheme of each that is ternary as it lies. off_grid: of every other, the share of values off its grid; empty
    where none is ternary.
    """

    found: Mapping[str, AffineGroups]
    off_grid: Mapping[str, float]

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know, a line each."""
        if not self.found:
            return ()
        total = len(self.found) + len(self.off_grid)
        widths = sorted({scheme.group_size for scheme in self.found.values()})
        scales = ", ".join("a row" if width == PER_ROW else f"{width} columns" for width in widths)
        exact = (
            f"{len(self.found)} of {total} linear weights are ternary as they are, a scale for {scales}; "
            "code x scale gives back every value, bit for bit (a zero's sign aside)"
        )
        return (exact, *(f"{self.described(name)}; it stays dense" for name in self.off_grid))

    def described(self, name: str) -> str:
        """Why a weight was not taken over."""
        return f"{name} is not ternary: {100 * self.off_grid[name]:.3g} % of its values are off the grid"


def ternary_weights(
    views: Sequence[TensorView], *, threads: int = 1, progress: Progress | None = None
) -> TernaryWeights:
    """Look at the linear weights of a model, which are read whole where they are ternary."""
    tell, total = progress or unwatched, sum(view.size for view in views)
    found: dict[str, AffineGroups] = {}
    others: list[TensorView] = []
    seen = 0
    for view, scheme in zip(views, ordered_map(ternary_scheme, views, threads), strict=True):
        if scheme is None:
            others.append(view)
        else:
            found[view.name] = scheme
        seen += view.size
        tell("looking for ternary weights", seen, total)
    if not found:
        return TernaryWeights({}, {})
    usual = next(iter(found.values())).group_size
    return TernaryWeights(found, {view.name: off_grid_share(view, usual) for view in others})


def ternary_scheme(view: TensorView) -> AffineGroups | None:
    """The scheme of a matrix that is ternary as it lies, None when it is not. Reads it in runs of rows.

    Its groups are the widest that have one scale each, and its scales float16 where that holds all of them exactly,
    else float32, which holds any that bfloat16 does.
    """
    cols = view.shape[1]
    width = cols
    in_float16 = True
    for rows in _runs(view):
        patterns = magnitude_patterns(rows)
        found = _widest(patterns, width)
        if found is None:
            return None
        width = found
        scales = _largest(patterns, width).view(rows.dtype).astype(np.float32)
        if not _usable(scales):
            return None
        with np.errstate(over="ignore", under="ignore"):
            in_float16 = in_float16 and bool((scales.astype(np.float16).astype(np.float32) == scales).all())
    return AffineGroups(
        bits=2,
        group_size=PER_ROW if width == cols else width,
        scale_dtype="float16" if in_float16 else "float32",
        ternary=True,
    )


def off_grid_share(view: TensorView, group_size: int) -> float:
    """The share of values that are neither zero nor of the commonest magnitude of their group.

    A group size that does not divide the columns counts as whole rows.
    """
    cols = view.shape[1]
    width = cols if group_size == PER_ROW or cols % group_size else group_size
    off = 0
    for rows in view.chunks():
        groups = np.sort(magnitude_patterns(rows).reshape(-1, width), axis=1)
        # Sorted, the commonest magnitude reaches across the middle of those that are not zero, or none has a majority.
        middle = (width + (groups == 0).sum(axis=1)) // 2
        common = groups[np.arange(len(groups)), np.minimum(middle, width - 1)]
        off += int(((groups != 0) & (groups != common[:, None])).sum())
    return off / view.size if view.size else 0.0


def _runs(view: TensorView) -> Iterator[np.ndarray]:
    """The first rows, then all."""
    yield view.fetch(0, min(FIRST_ROWS, view.rows))
    yield from view.chunks()


def _widest(patterns: np.ndarray, width: int) -> int | None:
    """The widest groups with one magnitude each, whose borders fall on those of groups of `width`; None if too narrow.

    patterns: of magnitudes, (rows, cols).
    """
    for parts in range(1, width // NARROWEST + 1):
        if width % parts == 0 and _is_ternary(patterns, width // parts):
            return width // parts
    return width if width < NARROWEST and _is_ternary(patterns, width) else None


def _is_ternary(patterns: np.ndarray, width: int) -> bool:
    """Whether every group of `width` columns has one magnitude besides zero."""
    groups = patterns.reshape(-1, width)
    largest = groups.max(axis=1, keepdims=True)
    return bool(((groups == largest) | (groups == 0)).all())


def _largest(patterns: np.ndarray, width: int) -> np.ndarray:
    largest: np.ndarray = patterns.reshape(-1, width).max(axis=1)
    return largest


def _usable(scales: np.ndarray) -> bool:
    """Whether these are scales that float32 holds as normal numbers, or zero: NaN, infinity and subnormals are not."""
    least, most = SCALE_LIMITS["float32"]
    return bool(((scales == 0) | ((scales >= least) & (scales <= most))).all())
