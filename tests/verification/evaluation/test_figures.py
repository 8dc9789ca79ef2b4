"""Figures of an evaluation against numbers worked out by hand, and against chance itself."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from quantkit.verification.evaluation.figures import (
    ArtifactFigures,
    Distance,
    Evaluation,
    Mean,
    ModelFigures,
    Rows,
)


def test_a_mean_counts_positions_and_its_error_counts_windows():
    # Sums 3 and 3 over 1 and 3 positions: mean 1.5, residuals 3 - 1.5 and 3 - 4.5, variance 2/1 * 4.5 / 4^2.
    mean = Mean.of([np.array([3.0]), np.array([1.0, 1.0, 1.0])])
    assert mean.value == 1.5
    assert mean.error == pytest.approx(math.sqrt(2 * (1.5**2 + 1.5**2)) / 4)


def test_one_window_has_no_error():
    assert Mean.of([np.array([1.0, 2.0])]) == Mean(1.5, None)
    assert "±" not in Mean(1.5, None).in_words() + Mean(1.5, None).by_share()


def test_the_error_is_how_far_means_of_other_windows_scatter():
    # Tokens of a window share a part of what they lose, which an error by tokens would miss.
    rng = np.random.default_rng(0)

    def drawn() -> list[np.ndarray]:
        return [rng.standard_normal() + rng.standard_normal(50) for _ in range(40)]

    means = [Mean.of(drawn()) for _ in range(300)]
    scatter = np.std([mean.value for mean in means])
    assert np.mean([mean.error for mean in means]) == pytest.approx(scatter, rel=0.15)
    by_tokens = math.sqrt(2 / (40 * 50))
    assert scatter > 4 * by_tokens


def test_the_exponential_of_a_mean_carries_its_error_to_first_order():
    found = Mean(math.log(20), 0.01).exponential()
    assert (found.value, found.error) == (pytest.approx(20), pytest.approx(0.2))
    assert math.isfinite(Mean(1e9, 1.0).exponential().value)


@pytest.mark.parametrize(
    ("mean", "words"),
    [
        (Mean(230.31, 12.9), "230 ± 13"),
        (Mean(0.99853, 0.00121), "0.9985 ± 0.0012"),
        (Mean(1.0, 0.0), "1.0000 ± 0.0000"),
        (Mean(math.nan, math.nan), "nan ± nan"),
    ],
)
def test_an_error_is_told_to_its_second_digit(mean: Mean, words: str):
    assert mean.in_words() == words


def test_an_error_of_what_may_be_of_any_magnitude_is_told_as_a_share():
    assert Mean(9.68e-5, 2.5e-6).by_share() == "9.68e-05 ± 2.6%"
    assert Mean(0.0054, 0.00054).by_share() == "0.00540 ± 10%"
    assert Mean(0.0, 0.0).by_share() == "0.00"


def test_a_distance_of_distributions_by_hand():
    p = np.log(np.array([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]], np.float32))
    q = np.log(np.array([[0.25, 0.25, 0.5], [0.25, 0.25, 0.5]], np.float32))
    found = Distance.of([Rows.of(p, q), Rows.of(q, q)])
    assert found.kl.value == pytest.approx(math.log(2) / 16, abs=1e-7)  # ln(2)/4 at one position of four
    assert found.kl_median == pytest.approx(0, abs=1e-7)
    assert found.kl_q99 == pytest.approx(0.97 * math.log(2) / 4, abs=1e-6)
    assert found.top1.value == 0.75
    assert found.top5.value == 1.0, "all three tokens are among the five most likely ones"


def test_what_is_undefined_stays_undefined():
    p, q = np.zeros((4, 8), np.float32), np.zeros((4, 8), np.float32)
    q[1, 3] = np.nan
    found = Distance.of([Rows.of(p, q), Rows.of(p, p)])
    assert math.isnan(found.kl.value)
    assert math.isnan(found.kl_q99)
    assert found.top1.value == found.top5.value == 7 / 8


def evaluation(*paths: str, floor: bool = False) -> Evaluation:
    """With made-up figures."""
    mean = Mean(0.01, 0.001)
    distance = Distance(mean, 0.008, 0.04, Mean(0.9, 0.01), Mean(0.95, 0.01))
    model = {"format": "gguf", "size": 1_000_000, "bits_per_weight": 4.5, "perplexity": Mean(20.0, 1.0)}
    other = {"weights_alone": distance, "floor": distance} if floor else {}
    artifacts = tuple(
        ArtifactFigures(
            path=path, **model, engine="llama-cpp", perplexity_ratio=Mean(1.02, 0.01), from_source=distance, **other
        )
        for path in paths
    )
    source = ModelFigures(path="models/original", **model)
    counts = {"windows": 4, "tokens": 2048, "positions": 2044, "skip_positions": 0}
    return Evaluation(text="t.txt", text_digest="0" * 64, **counts, source=source, artifacts=artifacts)


def test_artifacts_of_the_same_name_are_told_apart():
    assert evaluation("a/m.gguf", "b/m.gguf", "c/n.gguf").names == ["a/m.gguf", "b/m.gguf", "n.gguf"]


def test_the_noise_floor_is_a_table_where_it_was_measured():
    alone, both = evaluation("m.gguf").tables(), evaluation("m.gguf", floor=True).tables()
    assert [len(table) for table in alone] == [3, 2]
    assert [len(table) for table in both] == [3, 3, 2]
    assert all(len(row) == len(table[0]) for table in both for row in table)


def test_json_has_no_nan():
    made = evaluation("m.gguf")
    broken = Distance(Mean(math.nan, math.nan), math.nan, math.nan, Mean(0.0, 0.0), Mean(0.0, 0.0))
    artifact = ArtifactFigures(
        **{name: getattr(made.artifacts[0], name) for name in ("path", "format", "size", "bits_per_weight")},
        perplexity=Mean(math.nan, None),
        perplexity_ratio=Mean(math.nan, None),
        engine="fake",
        from_source=broken,
    )
    found = Evaluation(
        **{name: getattr(made, name) for name in made.to_json() if name != "artifacts"}, artifacts=(artifact,)
    ).to_json()
    assert "NaN" not in json.dumps(found)
    assert found["artifacts"][0]["from_source"]["kl"] == {"value": None, "error": None}
