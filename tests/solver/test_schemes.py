"""The solver on every scheme in the folder, and on two that are not: neither needs a change of its loops."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from quantkit import discovery
from quantkit.methods.awq import METHOD as AWQ
from quantkit.methods.gptq import Gptq
from quantkit.protocols import Method
from quantkit.solver.stages import Stages
from quantkit.tensors.rounding import round_to_nearest
from quantkit.tensors.scheme import ROOM, SCALE_DTYPES, Fit, Levels, Scheme, Shapes, scheme_from_json
from quantkit.tensors.schemes.affine_groups import AffineGroups
from tests.support.laws import correlated_statistics, relative_output_error
from tests.support.runs import one_layer

ROWS, COLS = 96, 128
TABLE = (-1.0, -0.7, -0.5, -0.4, -0.3, -0.2, -0.1, 0.0, 0.08, 0.16, 0.25, 0.33, 0.44, 0.56, 0.72, 1.0)


@dataclass(frozen=True, slots=True, eq=False)
class TableLevels:
    table: Tensor

    def nearest_(self, x: Tensor) -> Tensor:
        middles = (self.table[1:] + self.table[:-1]) / 2
        return x.copy_(self.table[torch.bucketize(x.contiguous(), middles)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Codebook(Scheme):
    """Sixteen levels that are not evenly spaced, as those of NF4 and IQ4_NL."""

    kind: ClassVar[str] = "codebook"
    bits: int = 4
    group_size: int = 32
    scale_dtype: str = "float16"

    @property
    def span(self) -> float:
        return 2.0

    def parameters(self, rows: int, cols: int) -> Shapes:
        return {"scale": (SCALE_DTYPES[self.scale_dtype], (rows, self.groups(cols)))}

    def check(self, codes: np.ndarray, arrays: Mapping[str, np.ndarray]) -> None:
        assert codes.max(initial=0) < 16

    def values(self, codes: np.ndarray, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        grouped = np.array(TABLE, np.float32)[codes].reshape(len(codes), arrays["scale"].shape[1], -1)
        return (grouped * arrays["scale"].astype(np.float32)[:, :, None]).reshape(codes.shape)

    def effective(self, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        scale = arrays["scale"].astype(np.float32)
        return scale, scale * np.float32(TABLE[0])

    def covering(self, groups: np.ndarray) -> dict[str, np.ndarray]:
        largest = np.abs(groups).max(-1)
        return {"scale": np.where(largest == 0, 1, largest).astype(np.float16)}

    def nearest(self, groups: np.ndarray, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        ratio = groups / arrays["scale"].astype(np.float32)[..., None]
        return np.abs(ratio[..., None] - np.array(TABLE, np.float32)).argmin(-1).astype(np.uint8)

    def neutral(self, ones: Tensor) -> Fit:
        return Fit(ones)

    def candidates(self, low: Tensor, high: Tensor) -> Iterator[Fit]:
        for shrink in (0.6, 0.7, 0.8, 0.9, 1.0):
            yield Fit(self.rounded_scale(torch.maximum(-low, high) * shrink, Fit(low)))

    def levels_of(self, fit: Fit) -> Levels:
        return TableLevels(torch.tensor(TABLE))

    def rounded_scale(self, scale: Tensor, fit: Fit) -> Tensor:
        return scale.abs().clamp(min=2.0**-24).half().float()

    def stored(self, fit: Fit) -> dict[str, Tensor]:
        return {"scale": fit.scale}

    def fit(self, arrays: Mapping[str, np.ndarray]) -> Fit:
        return Fit(torch.from_numpy(arrays["scale"].astype(np.float32)))

    def codes(self, levels: Tensor, fit: Fit) -> Tensor:
        return torch.bucketize(levels.contiguous(), torch.tensor(TABLE) - 1e-3).float() - 1

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, **asdict(self)}


SHARE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalesOfScales(AffineGroups):
    """Symmetric groups whose scales are 1 to 63 times one that four of them share, as those of K-quants."""

    kind: ClassVar[str] = "scales-of-scales"

    def zero_code(self, arrays: Mapping[str, np.ndarray]) -> int:
        return self.midpoint

    def parameters(self, rows: int, cols: int) -> Shapes:
        groups = self.groups(cols)
        return {
            "step": (np.dtype(np.float16), (rows, groups // SHARE)),
            "multiple": (np.dtype(np.uint8), (rows, groups)),
        }

    def check(self, codes: np.ndarray, arrays: Mapping[str, np.ndarray]) -> None:
        assert codes.max(initial=0) < self.levels
        assert arrays["multiple"].max() <= 63

    def effective(self, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        scale = np.repeat(arrays["step"].astype(np.float32), SHARE, axis=1) * arrays["multiple"]
        return scale, scale * -np.float32(self.midpoint)

    def values(self, codes: np.ndarray, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        scale = self.effective(arrays)[0]
        steps = codes.astype(np.float32) - self.midpoint
        return (steps.reshape(len(codes), scale.shape[1], -1) * scale[:, :, None]).reshape(codes.shape)

    def covering(self, groups: np.ndarray) -> dict[str, np.ndarray]:
        wanted = torch.from_numpy(np.abs(groups).max(-1) / np.float32(self.span / 2))
        fit = self.settled(Fit(wanted))
        stored = {name: x.numpy() for name, x in self.stored(fit).items()}
        return {"step": stored["step"].astype(np.float16), "multiple": stored["multiple"].astype(np.uint8)}

    def nearest(self, groups: np.ndarray, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        scale = np.maximum(self.effective(arrays)[0], np.float32(1e-30))[..., None]
        return np.clip(np.rint(groups / scale) + self.midpoint, 0, self.levels - 1).astype(np.uint8)

    def candidates(self, low: Tensor, high: Tensor) -> Iterator[Fit]:
        for shrink in (0.7, 0.8, 0.9, 1.0):
            yield Fit((torch.maximum(-low, high) * (2 * shrink / self.span)).clamp(min=1e-8))

    def settled(self, fit: Fit) -> Fit:
        rows, groups = fit.scale.shape
        largest = fit.scale.abs().view(rows, groups // SHARE, SHARE).amax(-1)
        step = (largest / 63).clamp(min=2.0**-24).half().float().repeat_interleave(SHARE, dim=1)
        shared = Fit(fit.scale, shared={"step": step})
        return Fit(self._multiple(fit.scale, step) * step, shared=shared.shared)

    def rounded_scale(self, scale: Tensor, fit: Fit) -> Tensor:
        if fit.shared is None:
            return scale
        return self._multiple(scale, fit.shared["step"]) * fit.shared["step"]

    @staticmethod
    def _multiple(scale: Tensor, step: Tensor) -> Tensor:
        return (scale.abs() / step).round().clamp(1, 63)

    def stored(self, fit: Fit) -> dict[str, Tensor]:
        assert fit.shared is not None
        step = fit.shared["step"]
        return {"step": step[:, ::SHARE], "multiple": (fit.scale / step).round()}

    def fit(self, arrays: Mapping[str, np.ndarray]) -> Fit:
        step = np.repeat(arrays["step"].astype(np.float32), SHARE, axis=1)
        return Fit(torch.from_numpy(self.effective(arrays)[0]), shared={"step": torch.from_numpy(step)})


FOUND = [scheme_from_json({"kind": kind, "bits": 4, "group_size": 32}) for kind in discovery.names(ROOM)]
SCHEMES = [
    *FOUND,
    AffineGroups(bits=2, group_size=32, ternary=True),
    AffineGroups(bits=4, group_size=32, symmetric=False),
    Codebook(),
    ScalesOfScales(bits=4, group_size=32),
]


def outliers() -> np.ndarray:
    weight = np.random.default_rng(3).standard_t(4, (ROWS, COLS)).astype(np.float32)
    weight[5] += 2
    weight[6] = 0
    return weight


@pytest.mark.parametrize("method", [AWQ, Gptq()], ids=["awq", "gptq"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_calibrated_methods_beat_rounding_on_every_scheme(scheme: Scheme, method: Method) -> None:
    weight, statistics = outliers(), correlated_statistics(COLS)
    tensor, report = one_layer(method, weight, scheme, statistics)
    assert report.fallback is None
    assert tensor.scheme == scheme
    hessian = statistics.hessian.numpy()
    errors = [
        relative_output_error(weight, x.dequantized(), hessian) for x in (tensor, round_to_nearest(weight, scheme))
    ]
    assert 0 < errors[0] < (0.6 if method.name == "gptq" else 1.0) * errors[1]
    assert report.error == pytest.approx(errors[0], rel=1e-4)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_threads_change_no_code(scheme: Scheme) -> None:
    weight, statistics = outliers(), correlated_statistics(COLS)
    digests = {one_layer(Gptq(), weight, scheme, statistics, threads=n)[0].numbers_digest() for n in (1, 2)}
    assert len(digests) == 1


def test_descent_moves_offsets_where_there_are_some() -> None:
    """A second round of descent lowers the error of a scheme with offsets, whose offsets it refits."""
    weight, statistics = outliers(), correlated_statistics(COLS)
    (scheme,) = (x for x in FOUND if x.kind == "offset-groups")
    reports = {n: one_layer(Gptq(Stages(rounds=n)), weight, scheme, statistics) for n in (0, 1, 3)}
    errors = [report.error for _, report in reports.values()]
    assert errors == sorted(errors, reverse=True)
    assert (reports[0][0].arrays["offset"] != reports[1][0].arrays["offset"]).any()
