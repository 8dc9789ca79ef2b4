"""Limits of predictions, from both sides: what rounding really does stays within, what is wrong does not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.loading import load_model
from quantkit.protocols import ExportOptions, Predictions
from quantkit.verification.golden import Golden
from quantkit.verification.metrics import kl_by_position, kl_divergence
from quantkit.verification.prompts import Prompt
from quantkit.verification.proof import verify
from quantkit.verification.recording import recorded
from quantkit.verification.steps import predictions
from quantkit.verification.steps.limits import ENGINE_FACTOR, INT8_RUN, chance, mixed, mixed_alike, noise, noise_limits
from quantkit.verification.steps.logit_facts import LogitFacts, facts_of, float16_cost
from tests.support.family import write_member

torch = pytest.importorskip("torch")

LENGTHS = (17, 40, 1, 1, 1, 2, 3)


def prompts(checkpoint: Checkpoint, lengths: Sequence[int] = LENGTHS) -> list[Prompt]:
    random = np.random.default_rng(7)
    draw = [tuple(map(int, random.integers(0, checkpoint.spec.vocab_size, length))) for length in lengths]
    return [Prompt(f"{index}: {len(ids)} tokens", "", ids) for index, ids in enumerate(draw)]


def answered(path: Path, asked: Sequence[Prompt]) -> list[Predictions]:
    return list(predictions.predicted(path, asked, int8_run=INT8_RUN, progress=None))


def cost_of_int8(answers: Sequence[Predictions]) -> list[np.ndarray]:
    return [kl_by_position(answer.exact, answer.rounded) for answer in answers if answer.rounded is not None]


@pytest.fixture(scope="module", params=["BitCPM4-1B", "MiniCPM-2B"])
def member(request, tmp_path_factory) -> Checkpoint:
    """Tiny models of sharp predictions; the first one's weights are ternary, which round-to-nearest hardly moves."""
    return registry.open_checkpoint(write_member(tmp_path_factory.mktemp("member") / request.param, request.param))


@pytest.fixture(scope="module")
def golden(member) -> Golden:
    return recorded(member, prompts(member))


def exported(model: Checkpoint, out: Path, container: str, type_: str, arch: str) -> Path:
    planned = registry.exporter(container).prepare(model, ExportOptions(type=type_, arch=arch))
    return publish(planned, out, inputs=model.inputs).path


@pytest.mark.parametrize(
    "kind",
    [
        ("gguf", "q5_0", "native"),
        ("gguf", "q4_0", "native"),
        ("gguf", "q4_1", "native"),
        ("gguf", "q8_0", "native"),
        ("gguf", "f16", "llama"),
        ("hf", "bf16", "llama"),
    ],
)
def test_right_artifacts_of_sharp_models_pass_on_prompts_of_every_length(member, golden, tmp_path, kind):
    artifact = exported(member, tmp_path / "artifact.gguf", *kind)
    report = verify(artifact, golden=golden, engine="reference")
    assert report.passed, report.lines()
    assert verify(artifact, against=member.path, engine="none").passed


def test_the_original_itself_sets_limits_that_right_artifacts_keep(member, tmp_path):
    asked = prompts(member)
    artifact = exported(member, tmp_path / "artifact.gguf", "gguf", "q5_0", "native")
    trusted = predictions.computed(member, asked, 2e-3, None)  # q5_0's own error
    answers = predictions.ask_reference(artifact, asked, trusted, arithmetic=None, progress=None)
    assert all(comparison.passed for comparison in answers.comparisons)


@pytest.mark.parametrize(
    ("change", "error"), [({"scale_depth": 1.5}, 4e-8), ({"scale_emb": 11}, 4e-8), ({"scale_emb": 8}, 1e-4)]
)
def test_a_model_with_a_wrong_scalar_is_beyond_the_limits(member, golden, tmp_path, change, error):
    """Of float16 artifacts, and of 8-bit ones; 4e-8 and 1e-4 are their squared errors."""
    name = member.path.name
    wrong = write_member(tmp_path / name, name, **change)
    trusted = predictions.recorded(golden, error, len(golden.prompts))
    answers = predictions.ask_reference(wrong, golden.prompts, trusted, arithmetic=None, progress=None)
    assert not any(comparison.passed for comparison in answers.comparisons)


def test_logits_that_are_too_small_by_a_share_cost_what_their_spread_says():
    logits = np.random.default_rng(0).normal(scale=3, size=(7, 50)).astype(np.float32)
    facts, share = LogitFacts.of(logits), 1e-3
    assert kl_divergence(logits, logits * (1 - share)) == pytest.approx(share**2 * facts.spread / 2, rel=0.01)
    assert (facts.positions, facts.largest) == (7, float(np.abs(logits).max()))
    assert LogitFacts.of(logits + 100).spread == pytest.approx(facts.spread, rel=1e-3)


@pytest.mark.parametrize("scale", [0.5, 3.0, 8.0])
def test_freedom_is_what_makes_random_errors_vary(scale):
    """A mean of k squares of normal numbers varies by 2 / k of its square."""
    random = np.random.default_rng(1)
    logits = random.normal(scale=scale, size=(3, 40))
    found = [kl_divergence(logits, logits + random.normal(scale=1e-3, size=logits.shape)) for _ in range(2000)]
    assert 2 / (np.std(found) / np.mean(found)) ** 2 == pytest.approx(LogitFacts.of(logits).freedom, rel=0.15)


def test_two_likely_tokens_leave_one_degree_of_freedom():
    logits = np.array([[10.0, 10.0, -60.0, -60.0]])
    assert LogitFacts.of(logits).freedom == pytest.approx(1.0)
    assert LogitFacts.of(np.array([[50.0, -50.0]])).freedom >= 1


def test_rounding_logits_to_float16_costs_what_is_said():
    logits = np.random.default_rng(2).normal(scale=2, size=(300, 200)).astype(np.float32)
    rounded = logits.astype(np.float16).astype(np.float32)
    assert kl_divergence(logits, rounded) == pytest.approx(float16_cost(logits), rel=0.05)


def test_chance_allows_what_a_cost_that_is_mixed_with_others_is_exceeded_by():
    assert chance(4.0) == pytest.approx(-math.log(1e-6), rel=0.1)  # two squares: an exponential law
    assert 1 < chance(1e6) < 1.02
    for freedom in (4, 12, 60):
        shown, own, *others = np.random.default_rng(3).chisquare(freedom, size=(18, 100_000))
        measured = np.maximum(own, (own + sum(others)) / 17)
        exceeded = shown / measured
        assert exceeded.max() < chance(freedom) < 6 * np.quantile(exceeded, 0.999)


def test_what_was_measured_on_a_prompt_is_not_taken_back():
    assert mixed([8.0, 1.0], [1, 99])[0] == 8.0
    assert mixed([0.0, 1.0], [1, 99])[0] == pytest.approx(16 / 17 * 0.99)
    first, rest = mixed_alike([np.array([0.0]), np.array([4.0, 1.0, 1.0])])
    assert first == pytest.approx(16 / 17 * 2.0)  # the mean of the two first positions
    assert rest == 2.0


@pytest.mark.parametrize(("name", "layers"), [("MiniCPM-2B", 2), ("MiniCPM4-0.5B", 2), ("MiniCPM4-0.5B", 32)])
def test_a_forward_pass_in_float16_stays_within_its_limits_and_a_wrong_one_does_not(tmp_path, name, layers):
    """torch rounds weights, every result, the stream and the logits to float16, as vLLM does."""
    path = write_member(tmp_path / name, name, num_hidden_layers=layers)
    checkpoint = registry.open_checkpoint(path)
    asked = prompts(checkpoint)
    answers = answered(path, asked)
    exact = [answer.exact for answer in answers]
    stored = [float16_cost(logits) for logits in exact]
    limits = noise_limits(
        cost_of_int8(answers), facts_of(exact), noise("float16", checkpoint.spec), ENGINE_FACTOR, stored
    )
    costs = _costs_in_float16(path, asked, exact)
    assert all(cost < limit for cost, limit in zip(costs, limits, strict=True))
    long = slice(0, 2)  # where chance averages out, they are not far beyond what it costs
    assert all(limit < 30 * cost for limit, cost in zip(limits[long], costs[long], strict=True))
    wrong = write_member(tmp_path / "wrong" / name, name, num_hidden_layers=layers, scale_depth=1.45)
    assert all(
        cost > limit for cost, limit in zip(_costs_in_float16(wrong, asked, exact)[long], limits[long], strict=True)
    )


def _costs_in_float16(path: Path, asked: Sequence[Prompt], exact: Sequence[np.ndarray]) -> list[float]:
    model = load_model(registry.open_checkpoint(path)).half()
    with torch.no_grad():
        found = [model(torch.tensor([prompt.token_ids]))[0].float().numpy() for prompt in asked]
    return [kl_divergence(trusted, logits) for trusted, logits in zip(exact, found, strict=True)]


def test_integer_kernels_stay_within_what_another_draw_of_their_rounding_costs(member, tmp_path):
    """The same model in float16, folded: int8 rounds other inputs at every place, and costs as much on average."""
    asked = prompts(member, (17, 40, *(1,) * 30, *(2,) * 10))
    other = answered(exported(member, tmp_path / "folded", "hf", "f32", "llama"), asked)
    answers = answered(member.path, asked)
    facts = facts_of([answer.exact for answer in answers])
    limits = noise_limits(cost_of_int8(other), facts, noise("int8 inputs", member.spec), ENGINE_FACTOR)
    costs = [float(kl.mean()) for kl in cost_of_int8(answers)]
    assert all(cost < limit for cost, limit in zip(costs, limits, strict=True))
    assert all(limit < 10 * cost for cost, limit in zip(costs[:2], limits[:2], strict=True))
