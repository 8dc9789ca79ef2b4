"""The Fisher information of layer outputs, against derivatives of the whole model and against the divergence itself."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from quantkit.calibration.fisher import OuterStatistics, sensitivities  # noqa: E402
from quantkit.calibration.samples import make_samples, weighed_tokens  # noqa: E402
from quantkit.calibration.statistics import LayerStatistics  # noqa: E402
from quantkit.methods.gptq import Gptq  # noqa: E402
from quantkit.models.loading import load_model  # noqa: E402
from quantkit.models.spec import Role  # noqa: E402
from quantkit.solver.cholesky import cholesky, damped, divided, unit_upper  # noqa: E402
from quantkit.solver.row_feedback import BLOCKS, aimed, relative, row_blocks, solving_order  # noqa: E402
from quantkit.tensors.schemes.affine_groups import AffineGroups  # noqa: E402
from quantkit.tensors.views import QuantizedView  # noqa: E402
from quantkit.threads import torch_workers  # noqa: E402
from tests.support.memory import memory_checkpoint, tiny_config  # noqa: E402
from tests.support.runs import one_layer, quantized  # noqa: E402

INT4 = AffineGroups(bits=4, group_size=32)
WEIGHED_ROLES = (Role.Q, Role.K, Role.V, Role.O, Role.DOWN)
POSITION_ROLES = (Role.O, Role.DOWN)


def token_rows(checkpoint, *lengths: int) -> list[np.ndarray]:
    random = np.random.default_rng(5)
    return [random.integers(0, checkpoint.spec.vocab_size, length) for length in lengths]


def exact(checkpoint, row: np.ndarray, role) -> tuple[np.ndarray, np.ndarray]:
    """Jᵀ (diag p - p pᵀ) J of every position's output at layer 0, by automatic differentiation, and |x|² there."""
    model = load_model(checkpoint)
    module = model.model.layers[0].layer(role)
    moved, inputs = torch.zeros(1, len(row), len(module.weight), requires_grad=True), []
    module.register_forward_hook(lambda _, given, output: [inputs.append(given[0]), output + moved][1])
    logits = model(torch.from_numpy(row)[None])[0]
    total = 0.0
    for z, p in zip(logits, logits.detach().softmax(-1), strict=True):
        # diag p - p pᵀ = Σ d_v d_vᵀ with d_v = √p_v (e_v - p)
        for v in range(len(p)):
            (g,) = torch.autograd.grad(p[v].sqrt() * (z[v] - z @ p), moved, retain_graph=True)
            total = total + g[0, :, :, None] * g[0, :, None]
    return total.numpy(), inputs[0][0].detach().square().sum(-1).numpy()


def test_the_statistics_of_embedding_and_head_are_what_their_errors_cost():
    checkpoint = memory_checkpoint(tiny_config(vocab_size=24, num_hidden_layers=2))
    (row,) = token_rows(checkpoint, 9)
    sums = OuterStatistics.none_yet(checkpoint.spec.hidden_size)
    sensitivities(checkpoint, [row] * 2000, skip_positions=2, outer=sums)

    model, h = load_model(checkpoint), []
    model.model.norm.register_forward_hook(lambda _, given, output: h.append(output[0] / checkpoint.spec.logit_divisor))
    moved = torch.zeros(1, len(row), checkpoint.spec.hidden_size, requires_grad=True)
    model.model.embed_tokens.register_forward_hook(lambda _, given, output: output + moved)
    logits = model(torch.from_numpy(row)[None])[0]
    at_embedding, at_head = 0.0, 0.0
    for place, (z, p) in enumerate(zip(logits, logits.detach().softmax(-1), strict=True)):
        at_head = at_head + (place >= 2) * (1 - p.square().sum()) * torch.outer(h[0][place], h[0][place]).detach()
        for v in range(len(p)):
            (g,) = torch.autograd.grad(p[v].sqrt() * (z[v] - z @ p), moved, retain_graph=True)
            at_embedding = at_embedding + g[0, 2:].T @ g[0, 2:]
    for role, tied, wanted in (
        (Role.LM_HEAD, False, at_head),
        (Role.EMBED, False, at_embedding),
        (Role.EMBED, True, at_embedding + at_head),
    ):
        found = sums.of(role, tied=tied)
        mean = found.hessian / (found.tokens / (len(row) - 2))
        assert torch.linalg.norm(mean - wanted) < 0.1 * torch.linalg.norm(wanted), (role, tied)


def test_the_estimates_are_the_fisher_information_of_the_outputs():
    checkpoint = memory_checkpoint(tiny_config(vocab_size=24, num_hidden_layers=2))
    (row,) = token_rows(checkpoint, 9)
    # The probes differ from sequence to sequence: many copies of the same text average them out. About 1000 of them are
    # used, which leaves some hundredths to chance.
    found = sensitivities(checkpoint, [row] * 2000, skip_positions=2)
    assert [set(layer.outputs) for layer in found] == [set(WEIGHED_ROLES)] * 2
    for role in WEIGHED_ROLES:
        F, lengths = exact(checkpoint, row, role)
        expected, got = (F[2:] * lengths[2:, None, None]).mean(0), found[0].outputs[role].numpy()
        assert np.linalg.norm(got - expected) < 0.15 * np.linalg.norm(expected), role
        assert abs(np.trace(got) / np.trace(expected) - 1) < 0.1, role
        np.testing.assert_allclose(got, got.T)
        if role in POSITION_ROLES:
            squares = torch.stack(found[0].positions[role]).square().mean(0)[:, 0].numpy()
            np.testing.assert_allclose(squares, F.trace(axis1=1, axis2=2), rtol=0.25)


def test_two_threads_give_the_same_sensitivities_as_one():
    checkpoint = memory_checkpoint(tiny_config())
    rows = token_rows(checkpoint, 12, 31, 12, 7)
    one, two = (sensitivities(checkpoint, rows, skip_positions=1, threads=threads) for threads in (1, 2))
    for a, b in zip(one, two, strict=True):
        assert all(torch.equal(a.outputs[role], b.outputs[role]) for role in WEIGHED_ROLES)
        for role in POSITION_ROLES:
            assert all(map(torch.equal, a.positions[role], b.positions[role]))


def test_waves_give_what_all_sequences_together_give(monkeypatch: pytest.MonkeyPatch):
    checkpoint = memory_checkpoint(tiny_config())
    rows = token_rows(checkpoint, 12, 31, 12, 7, 30)
    together = sensitivities(checkpoint, rows, skip_positions=1)
    monkeypatch.setattr("quantkit.calibration.fisher.WAVE_TOKENS", 32)
    for a, b in zip(together, sensitivities(checkpoint, rows, skip_positions=1), strict=True):
        for role in WEIGHED_ROLES:
            torch.testing.assert_close(a.outputs[role], b.outputs[role])
        for role in POSITION_ROLES:
            assert [len(x) for x in b.positions[role]] == [12, 31, 12, 7, 30]
            assert all(map(torch.equal, a.positions[role], b.positions[role]))


def test_bfloat16_gives_nearly_the_same():
    checkpoint = memory_checkpoint(tiny_config())
    rows = token_rows(checkpoint, 40, 31)
    exactly, nearly = (sensitivities(checkpoint, rows, bfloat16=half)[0] for half in (False, True))
    for role in WEIGHED_ROLES:
        distance = float((exactly.outputs[role] - nearly.outputs[role]).norm() / exactly.outputs[role].norm())
        assert 0 < distance < 0.3, role  # a token in a hundred is drawn otherwise


@pytest.mark.parametrize(
    ("tokens", "weighed"), [(1, 1), (2048, 2048), (8192, 2048), (16384, 8192), (32768, 32768), (65536, 65536)]
)
def test_the_longer_the_text_the_more_of_it_is_weighed(tokens: int, weighed: int):
    assert weighed_tokens(tokens) == weighed


def random_factors(rows: int, cols: int) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    """Weights, and H and G of strongly correlated inputs and outputs."""
    random = torch.Generator().manual_seed(3)
    weight = torch.randn(rows, cols, generator=random)
    x = torch.randn(4 * cols, cols, generator=random) @ torch.randn(cols, cols, generator=random)
    g = torch.randn(4 * rows, rows, generator=random) * torch.logspace(0, -2, rows)
    g = g @ torch.randn(rows, rows, generator=random)
    return weight.numpy(), (x.T @ x).double(), g.T @ g / len(g)


def weighted_error(weight: np.ndarray, made: np.ndarray, H: torch.Tensor, G: torch.Tensor) -> float:
    E = torch.from_numpy(made - weight).double()
    return float(((G.double() @ E) * (E @ H)).sum())


def test_feedback_between_rows_lowers_the_weighted_error():
    weight, H, G = random_factors(64, 128)
    method = Gptq()
    alike, _ = one_layer(method, weight, INT4, LayerStatistics(H, 512))
    weighed, report = one_layer(method, weight, INT4, LayerStatistics(H, 512), sensitivity=G)
    assert report.fallback is None
    before, after = (weighted_error(weight, tensor.dequantized(), H, G) for tensor in (alike, weighed))
    assert after < 0.8 * before


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_outputs_that_are_alike_change_nothing_but_the_order(rows: int):
    weight, H, _ = random_factors(rows, 64)
    plain, _ = one_layer(Gptq(), weight, INT4, LayerStatistics(H, 512))
    alike, _ = one_layer(Gptq(), weight, INT4, LayerStatistics(H, 512), sensitivity=torch.eye(rows))
    nothing, _ = one_layer(Gptq(), weight, INT4, LayerStatistics(H, 512), sensitivity=torch.zeros(rows, rows))
    for other in (alike, nothing):
        # Products of other shapes round otherwise, so a tie may fall to the other side.
        assert (plain.codes != other.codes).mean() < 0.01


@pytest.mark.parametrize("threads", [1, 2])
def test_rows_aim_at_the_minimum_for_what_was_lost_before(threads: int):
    _, _, G = random_factors(24, 8)
    order, factor = solving_order(G, 1)
    ordered = relative(G)[order][:, order].double()
    targets, lost = (torch.randn(24, 600, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    with torch_workers(threads) as workers:
        aims = aimed(targets, lost, factor, slice(6, 24), workers)
    moved = -torch.linalg.solve(ordered[6:, 6:], ordered[6:, :6] @ lost[:6].double())
    torch.testing.assert_close(aims.double(), targets[6:] + moved, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 3, 8, 100])
@pytest.mark.parametrize("cols", [8, 1024])
def test_row_blocks_cover_every_row_once(rows: int, cols: int):
    blocks = row_blocks(rows, cols)
    assert [i for block in blocks for i in range(block.start, block.stop)] == list(range(rows))
    assert len(blocks) <= BLOCKS


def test_a_sensitivity_that_is_not_finite_leaves_rows_alone():
    weight, H, _ = random_factors(16, 64)
    plain, _ = one_layer(Gptq(), weight, INT4, LayerStatistics(H, 512))
    spoiled, report = one_layer(
        Gptq(), weight, INT4, LayerStatistics(H, 512), sensitivity=torch.full((16, 16), torch.nan)
    )
    assert report.fallback is None
    assert (plain.codes != spoiled.codes).mean() < 0.01


def test_logits_that_overflow_leave_a_model_that_is_quantized_as_without():
    source = memory_checkpoint(tiny_config())
    arrays = {name: weight.read() for name, weight in source.weights.items()}
    arrays["model.norm.weight"] = np.full_like(arrays["model.norm.weight"], 3e38)
    source = memory_checkpoint(tiny_config(), arrays)
    rows = make_samples(token_rows(source, 12, 12), source="random", digest="")
    assert not any(
        torch.isfinite(sensitivities(source, rows.sequences)[0].outputs[role]).all() for role in WEIGHED_ROLES
    )
    weighed, plain = (quantized(source, INT4, "gptq", calibration=rows, fisher=fisher) for fisher in (True, False))
    for one, other in zip(weighed.checkpoint.weights.values(), plain.checkpoint.weights.values(), strict=True):
        if isinstance(one, QuantizedView) and isinstance(other, QuantizedView):
            assert (one.read().codes == other.read().codes).all()
    assert weighed.report()["tensors"] == plain.report()["tensors"]


@pytest.mark.parametrize("size", [1, 130, 700, 1100])
@pytest.mark.parametrize("threads", [1, 2])
def test_blocked_factors_are_those_of_lapack(size: int, threads: int):
    random = torch.Generator().manual_seed(size)
    x = torch.randn(2 * size, size, generator=random)
    matrix = damped((x.T @ x).double(), 0.01)
    lower = cholesky(matrix.clone(), threads)
    torch.testing.assert_close(lower, torch.linalg.cholesky(matrix), rtol=1e-3, atol=1e-3)
    quotient = divided(x, lower, threads)
    torch.testing.assert_close(quotient @ matrix, x, rtol=1e-3, atol=1e-3)
    order = torch.randperm(size, generator=random)
    unit = unit_upper(matrix, order, threads).double()
    assert (unit.diagonal() == 1).all()
    assert not unit.tril(-1).any()
    diagonal = torch.linalg.solve(unit, torch.linalg.solve(unit, matrix[order][:, order].double()).T)
    torch.testing.assert_close(diagonal, diagonal.diagonal().diag(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", [3, 600])
def test_a_matrix_that_is_not_positive_definite_has_no_factor(size: int):
    matrix = torch.eye(size)
    matrix[-1, -1] = -1.0
    assert cholesky(matrix) is None
