"""Predicted losses, against the divergence of the whole model with one weight replaced."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from quantkit.calibration.samples import make_samples  # noqa: E402
from quantkit.models.loading import load_model  # noqa: E402
from quantkit.pipeline.mixtures import losses  # noqa: E402
from quantkit.pipeline.mixtures.losses import conditional_variances, measured_losses, rounded_inputs  # noqa: E402
from quantkit.runtimes.reference.formulas import round_to_int8  # noqa: E402
from quantkit.tensors.block_options import Candidate  # noqa: E402
from quantkit.tensors.schemes.affine_groups import AffineGroups  # noqa: E402
from tests.support.memory import memory_checkpoint, random_arrays, tiny_config  # noqa: E402

CANDIDATES = (
    Candidate(type="int4", scheme=AffineGroups(bits=4, group_size=32), nbytes=2),
    Candidate(type="int6", scheme=AffineGroups(bits=6, group_size=32), nbytes=3),
    Candidate(type="f32", scheme=None, nbytes=8),
)


def samples_of(spec):
    random = np.random.default_rng(3)
    return make_samples([random.integers(0, spec.vocab_size, 48) for _ in range(40)], source="given", digest="none")


def matrices(checkpoint):
    return [slot.name for slot in checkpoint.spec.slots() if len(slot.shape) == 2]


def log_probabilities(checkpoint, rows):
    model = load_model(checkpoint)
    with torch.no_grad():
        return [model(torch.from_numpy(row)[None])[0].double().log_softmax(-1) for row in rows]


@pytest.mark.parametrize("tied", [True, False])
def test_they_are_the_divergence_that_follows(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(num_hidden_layers=2, tie_word_embeddings=tied)
    checkpoint = memory_checkpoint(config)
    arrays = random_arrays(checkpoint.spec)
    samples = samples_of(checkpoint.spec)
    made: dict[tuple[bytes, int], np.ndarray] = {}
    really = losses.searched_codes

    def recorded(weight, scheme, energy, threads):
        found = really(weight, scheme, energy, threads)
        made[weight.tobytes(), scheme.bits] = found.dequantized()
        return found

    monkeypatch.setattr(losses, "searched_codes", recorded)
    found = measured_losses(checkpoint, dict.fromkeys(matrices(checkpoint), CANDIDATES), samples, feedback=False)
    before = log_probabilities(checkpoint, samples.sequences)
    ratios = []
    for name, (four, six, dense) in found.items():
        assert dense == 0.0
        assert 8 < four / six < 40, "two bits are a factor of sixteen"
        changed = made[np.ascontiguousarray(arrays[name]).tobytes(), 6]
        after = log_probabilities(memory_checkpoint(config, {**arrays, name: changed}), samples.sequences)
        kl = [(p.exp() * (p - q)).sum(-1).mean() for p, q in zip(before, after, strict=True)]
        ratios.append(six / float(torch.stack(kl).mean()))
    assert min(ratios) > 0.6, dict(zip(found, ratios, strict=True))
    assert max(ratios) < 1.6, dict(zip(found, ratios, strict=True))


def test_they_do_not_depend_on_threads_or_on_who_else_is_measured() -> None:
    checkpoint = memory_checkpoint(tiny_config(num_hidden_layers=2))
    samples = samples_of(checkpoint.spec)
    every = dict.fromkeys(matrices(checkpoint), CANDIDATES)
    one = measured_losses(checkpoint, every, samples, feedback=True, skip_positions=4)
    assert one == measured_losses(checkpoint, every, samples, feedback=True, skip_positions=4, threads=3)
    name = matrices(checkpoint)[3]
    assert measured_losses(checkpoint, {name: CANDIDATES}, samples, feedback=True, skip_positions=4) == {
        name: one[name]
    }


def test_feedback_is_expected_to_bring_errors_down() -> None:
    checkpoint = memory_checkpoint(tiny_config(num_hidden_layers=2))
    samples = samples_of(checkpoint.spec)
    every = dict.fromkeys(matrices(checkpoint), CANDIDATES)
    with_it = measured_losses(checkpoint, every, samples, feedback=True)
    without = measured_losses(checkpoint, every, samples, feedback=False)
    assert all(0.2 * without[name][0] < with_it[name][0] <= without[name][0] for name in every)


def test_a_part_of_the_rows_stands_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = memory_checkpoint(tiny_config(num_hidden_layers=1))
    samples = samples_of(checkpoint.spec)
    names = [name for name in matrices(checkpoint) if "layers" in name]
    every = dict.fromkeys(names, CANDIDATES)
    whole = measured_losses(checkpoint, every, samples, feedback=False)
    monkeypatch.setattr(losses, "MOST_WEIGHTS", 1024)
    parts = measured_losses(checkpoint, every, samples, feedback=False)
    assert all(0.3 < parts[name][1] / whole[name][1] < 3 for name in names)
    assert parts != whole


def test_rounded_inputs_cost_more_in_long_runs() -> None:
    checkpoint = memory_checkpoint(tiny_config(hidden_size=256, intermediate_size=256, num_hidden_layers=1))
    samples = samples_of(checkpoint.spec)
    kinds = tuple(Candidate(type=str(run), scheme=None, nbytes=1, input_run=run) for run in (None, 32, 256))
    found = measured_losses(checkpoint, dict.fromkeys(matrices(checkpoint), kinds), samples, feedback=True)
    for exact, narrow, wide in found.values():
        assert exact == 0.0
        assert 0 < narrow < wide < 10 * narrow


@pytest.mark.parametrize("run", [32, 256])
def test_inputs_are_rounded_as_the_reference_says_that_engines_do(run: int) -> None:
    x = np.random.default_rng(0).standard_normal((5, 512)).astype(np.float32)
    ours, theirs = rounded_inputs(torch.from_numpy(x), run).numpy(), round_to_int8(x, run)
    error = np.square(ours - x).sum(), np.square(theirs - x).sum()  # its scales are float16
    assert error[0] == pytest.approx(error[1], rel=0.02)


def test_conditional_variances_are_those_of_a_regression() -> None:
    random = np.random.default_rng(1)
    x = random.standard_normal((5000, 4)) @ random.standard_normal((4, 4)) * [1.0, 3.0, 2.0, 4.0]
    H = torch.from_numpy(x.T @ x).float()
    found = conditional_variances(H).numpy()
    damped = x.T @ x + losses.DAMPING * np.trace(x.T @ x) / 4 * np.eye(4)
    order = np.argsort(np.diag(H.numpy()), kind="stable")
    for place, column in enumerate(order):
        later = order[:place]
        left = damped[column, column] - damped[column, later] @ np.linalg.solve(
            damped[np.ix_(later, later)], damped[later, column]
        )
        assert found[column] == pytest.approx(left, rel=1e-3)
