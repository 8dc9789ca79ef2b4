"""The solver on every scheme in the folder."""

from __future__ import annotations

import numpy as np
import pytest

from quantkit import discovery
from quantkit.methods.awq import METHOD as AWQ
from quantkit.methods.gptq import Gptq
from quantkit.protocols import Method
from quantkit.solver.stages import Stages
from quantkit.tensors.rounding import round_to_nearest
from quantkit.tensors.scheme import ROOM, Scheme
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.schemes.codebook import Codebook
from quantkit.tensors.schemes.offset_groups import OffsetGroups
from quantkit.tensors.schemes.super_blocks import SuperBlocks
from tests.support.laws import correlated_statistics, relative_output_error
from tests.support.runs import one_layer

ROWS, COLS = 96, 256
OFFSETS = OffsetGroups(bits=4, group_size=32)


SCHEMES = [
    AffineGroups(bits=4, group_size=32),
    AffineGroups(bits=2, group_size=32, ternary=True),
    AffineGroups(bits=4, group_size=32, symmetric=False),
    OFFSETS,
    Codebook(),
    Codebook(table="fp4", powers=True, scale_dtype="float32"),
    SuperBlocks(bits=4, group_size=32, scale_bits=6, minima=True),
    SuperBlocks(bits=2, group_size=16, scale_bits=4, minima=True),
    SuperBlocks(bits=3, group_size=16, scale_bits=6, minima=False),
    SuperBlocks(bits=6, group_size=16, scale_bits=8, minima=False),
    SuperBlocks(bits=4, group_size=32, scale_bits=6, minima=False, table="iq4-nl"),
]


def outliers() -> np.ndarray:
    weight = np.random.default_rng(3).standard_t(4, (ROWS, COLS)).astype(np.float32)
    weight[5] += 2
    weight[6] = 0
    return weight


def test_every_kind_is_tried() -> None:
    assert {scheme.kind for scheme in SCHEMES} == set(discovery.names(ROOM))


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
    reports = {n: one_layer(Gptq(Stages(rounds=n)), weight, OFFSETS, statistics) for n in (0, 1, 3)}
    errors = [report.error for _, report in reports.values()]
    assert errors == sorted(errors, reverse=True)
    assert (reports[0][0].arrays["offset"] != reports[1][0].arrays["offset"]).any()
