"""Descent where scales are coarse and factors shared: every step is held against the quadratic itself, in float64."""

from __future__ import annotations

from itertools import product
from threading import Lock

import numpy as np
import pytest
import torch
from torch import Tensor

from quantkit.solver.descent.factors import refitted
from quantkit.solver.descent.grids import regridded
from quantkit.solver.descent.groups import descend
from quantkit.solver.search import searched_fit
from quantkit.tensors.scheme import Fit
from quantkit.tensors.schemes.super_blocks import SuperBlocks
from tests.support.laws import correlated_statistics

ROWS, COLS = 24, 256
WITH_MINIMA = SuperBlocks(bits=2, group_size=16, scale_bits=4, minima=True)
ABOUT_ZERO = SuperBlocks(bits=3, group_size=16, scale_bits=6, minima=False)
SCHEMES = [WITH_MINIMA, ABOUT_ZERO]


def weights() -> Tensor:
    """Float32 [cols, rows]."""
    return torch.from_numpy(np.random.default_rng(1).standard_t(4, (COLS, ROWS)).astype(np.float32))


def hessian() -> Tensor:
    H = correlated_statistics(COLS).hessian.float()
    return H + 0.05 * H.diagonal().mean() * torch.eye(COLS)


def started(scheme: SuperBlocks, W: Tensor, H: Tensor) -> tuple[Fit, Tensor]:
    """The searched grid, [groups, rows], and the levels nearest to the weights, [cols, rows]."""
    found = searched_fit(W.T.contiguous(), H.diagonal(), scheme)
    assert found.shared is not None
    offset = None if found.offset is None else found.offset.T.contiguous()
    fit = Fit(found.scale.T.contiguous(), None, offset, {k: x.T.contiguous() for k, x in found.shared.items()})
    grouped = W.view(len(fit.scale), -1, ROWS)
    aims = (grouped if offset is None else grouped - offset[:, None]) / fit.scale[:, None]
    return fit, scheme.levels_of(fit).nearest_(aims).view(COLS, ROWS)


def on_grid(steps: Tensor, fit: Fit) -> Tensor:
    """The weights of steps that broadcast with `fit.scale`."""
    made = steps * fit.scale
    return made if fit.offset is None else made + fit.offset


def values(steps: Tensor, fit: Fit) -> Tensor:
    return on_grid(steps.view(len(fit.scale), -1, ROWS), fit.part((slice(None), None))).view(COLS, ROWS)


def errors(steps: Tensor, fit: Fit, W: Tensor, H: Tensor) -> Tensor:
    """Of every row, float64."""
    off = (values(steps, fit) - W).double()
    return (off * (H.double() @ off)).sum(0)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_pass_raises_no_error_and_keeps_the_gradient(scheme: SuperBlocks) -> None:
    W, H = weights(), hessian()
    fit, steps = started(scheme, W, H)
    before = errors(steps, fit, W, H)
    R = H @ (values(steps, fit) - W)
    descend(R, H, steps, scheme, fit, turn=Lock(), again=True)
    after = errors(steps, fit, W, H)
    assert (after <= before * (1 + 1e-5)).all()
    assert after.sum() < 0.6 * before.sum()
    torch.testing.assert_close(R, H @ (values(steps, fit) - W), rtol=0, atol=1e-3 * float(R.abs().max()))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_what_it_leaves_can_be_stored(scheme: SuperBlocks) -> None:
    W, H = weights(), hessian()
    fit, steps = started(scheme, W, H)
    R = H @ (values(steps, fit) - W)
    for again in (True, False):
        descend(R, H, steps, scheme, fit, turn=Lock(), again=again)
    assert fit.shared is not None
    turned = Fit(
        fit.scale.T, None, None if fit.offset is None else fit.offset.T, {k: x.T for k, x in fit.shared.items()}
    )
    stored = {name: x.numpy() for name, x in scheme.stored(turned).items()}
    arrays = {
        name: stored[name].astype(dtype).reshape(shape)
        for name, (dtype, shape) in scheme.parameters(ROWS, COLS).items()
    }
    assert all((arrays[name] == stored[name].reshape(arrays[name].shape)).all() for name in arrays)
    codes = scheme.codes(steps.view(len(fit.scale), -1, ROWS), fit).reshape(COLS, ROWS).T.numpy().astype(np.uint8)
    scheme.check(codes, arrays)
    np.testing.assert_array_equal(scheme.values(codes, arrays), values(steps, fit).T.numpy())


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_group_gets_the_cheapest_of_the_grids_near_its_own(scheme: SuperBlocks) -> None:
    """With inputs that are not correlated the best codes are the nearest ones, so every grid can be tried in full."""
    W, H = weights(), torch.diag(torch.linspace(1, 3, COLS))
    fit, steps = started(scheme, W, H)
    width, here = scheme.group_size, slice(0, scheme.group_size)
    part = fit.part(0)
    costs = []
    for near in scheme.neighbours(part):
        aims = (W[here] if near.offset is None else W[here] - near.offset) / near.scale
        off = on_grid(scheme.levels_of(near).nearest_(aims.clone()), near) - W[here]
        costs.append((off.square() * H.diagonal()[here, None]).sum(0))
    R = H @ (values(steps, fit) - W)
    found = regridded(R[here], H[here, here], steps[here], scheme, part, turn=Lock())
    off = on_grid(found, part) - W[here]
    torch.testing.assert_close((off.square() * H.diagonal()[here, None]).sum(0), torch.stack(costs).amin(0))
    assert len(costs) == (9 if scheme.minima else 3)
    assert len(found) == width


def test_a_group_whose_quadratic_cannot_be_factored_keeps_its_grid() -> None:
    W, H = weights(), hessian()
    fit, steps = started(WITH_MINIMA, W, H)
    scale, here = fit.scale[0].clone(), slice(0, WITH_MINIMA.group_size)
    flat = -torch.ones(WITH_MINIMA.group_size, WITH_MINIMA.group_size)
    found = regridded(flat[:, :1].expand(-1, ROWS), flat, steps[here], WITH_MINIMA, fit.part(0), turn=Lock())
    assert torch.equal(found, steps[here])
    assert torch.equal(fit.scale[0], scale)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_no_other_float16_factors_are_better_than_those_of_the_joint_step(scheme: SuperBlocks) -> None:
    W, H = weights(), hessian()
    fit, steps = started(scheme, W, H)
    before = errors(steps, fit, W, H)
    R = H @ (values(steps, fit) - W)
    moved = refitted(R, H, steps, scheme, fit)
    assert moved is not None
    after = errors(steps, fit, W, H)
    assert (after <= before).all()
    assert after.sum() < before.sum()
    assert fit.shared is not None
    names = list(fit.shared)
    kept = {name: x[0].clone() for name, x in fit.shared.items()}
    for signs in product((-1, 0, 1), repeat=len(names)):
        near = {
            name: torch.from_numpy(np.nextafter(kept[name].numpy().astype(np.float16), np.float16(sign * np.inf)))
            if sign
            else kept[name]
            for name, sign in zip(names, signs, strict=True)
        }
        scheme.take_factors(fit, {name: x.float() for name, x in near.items()})
        assert (errors(steps, fit, W, H) >= after * (1 - 2e-3)).all()


def test_a_minimum_stays_at_or_below_zero_and_its_factor_above() -> None:
    W, H = weights(), hessian()
    fit, steps = started(WITH_MINIMA, W, H)
    R = H @ (values(steps, fit) - W)
    descend(R, H, steps, WITH_MINIMA, fit, turn=Lock(), again=False)
    assert fit.offset is not None
    assert fit.shared is not None
    assert (fit.offset <= 0).all()
    assert all((x > 0).all() for x in fit.shared.values())
    assert (fit.scale > 0).all()
