"""What a run says about each source of its calibration text."""

from __future__ import annotations

import json

import numpy as np
import pytest

from quantkit.calibration.samples import Coverage, Samples, Source, joined
from quantkit.pipeline.source_report import source_reports
from quantkit.protocols import TensorReport
from quantkit.tensors.schemes.affine_groups import AffineGroups
from tests.support.memory import memory_checkpoint, tiny_config
from tests.support.runs import quantized, read_through

INT4 = AffineGroups(bits=4, group_size=32)


def coverage(*names: str) -> Coverage:
    rows = [np.arange(9)]
    return joined([(Source(name=name, kind="text", digest=""), rows) for name in names], notes=["first"]).coverage


def test_a_source_that_has_lost_much_more_than_the_others_is_named():
    found = source_reports(coverage("a", "b", "c"), {}, [1e-3, 2.5e-3, 1.2e-3])
    assert [source["kl"] for source in found["sources"]] == [1e-3, 2.5e-3, 1.2e-3]
    first, second = found["notes"]
    assert first == "first"
    assert second.startswith("b has lost 2.3 times as much as the other calibration text (KL 2.5e-03)")
    assert len(source_reports(coverage("a", "b", "c"), {}, [1e-3, 1.9e-3, 1.2e-3])["notes"]) == 1


@pytest.mark.parametrize("divergences", [None, [None, 1.0], [1.0, None]])
def test_what_was_not_measured_names_nobody(divergences: list[float | None] | None):
    found = source_reports(coverage("a", "b"), {}, divergences)
    assert found["notes"] == ["first"]
    assert [source["kl"] for source in found["sources"]] == (divergences or [None, None])


def test_errors_with_and_without_a_source_are_means_over_layers():
    tensors = {
        "p": TensorReport(0.1, left_out="a", error_without=0.3, error_with=0.1),
        "q": TensorReport(0.1, left_out="b", error_without=0.5, error_with=0.2),
        "r": TensorReport(0.1, left_out="a", error_without=0.5, error_with=0.2),
        "s": TensorReport(0.1),
    }
    assert source_reports(coverage("a", "b"), tensors, None)["left_out"] == {
        "a": {"error_without": pytest.approx(0.4), "error_with": pytest.approx(0.15)},
        "b": {"error_without": 0.5, "error_with": 0.2},
    }


def two_kinds() -> Samples:
    """Tokens of two halves of the vocabulary."""
    rng = np.random.default_rng(3)
    parts = [
        (Source(name=name, kind="text", digest=""), [rng.integers(low, low + 45, 60) for _ in range(3)])
        for name, low in (("low", 0), ("high", 50))
    ]
    return joined(parts)


def test_a_run_reports_every_source_in_and_out_of_the_fit():
    run = quantized(memory_checkpoint(tiny_config()), INT4, "gptq", calibration=two_kinds())
    read_through(run)
    report = json.loads(json.dumps(run.report()))
    calibration = report["calibration"]
    assert all(0 < source["kl"] < 1 for source in calibration["sources"])
    assert set(calibration["left_out"]) == {"low", "high"}
    for errors in calibration["left_out"].values():
        assert 0 < errors["error_with"] < errors["error_without"] < 1
    assert {tensor["left_out"] for tensor in report["tensors"].values()} == {"low", "high"}


def test_a_run_that_does_not_follow_the_original_knows_no_divergence():
    run = quantized(memory_checkpoint(tiny_config()), INT4, "gptq", calibration=two_kinds(), propagate=False)
    read_through(run)
    assert [source["kl"] for source in run.report()["calibration"]["sources"]] == [None, None]
