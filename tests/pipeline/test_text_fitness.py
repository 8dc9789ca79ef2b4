"""Whether calibration text serves its purpose is told from its amount, and from what was left out of it."""

from __future__ import annotations

import numpy as np
import pytest

from quantkit.calibration.samples import Samples, make_samples
from quantkit.pipeline.text_fitness import amount_warnings, result_warnings
from quantkit.protocols import TensorReport
from quantkit.tensors.schemes.affine_groups import AffineGroups
from tests.support.memory import memory_checkpoint, tiny_config
from tests.support.runs import quantized, read_through


def samples(count: int, length: int) -> Samples:
    rng = np.random.default_rng(0)
    return make_samples([rng.integers(0, 90, length) for _ in range(count)], source="text", digest="")


@pytest.mark.parametrize(
    ("count", "length", "told"),
    [(3, 22, []), (3, 21, ["63 tokens do not determine layers that read 64"]), (1, 64, ["to leave a part of it out"])],
)
def test_text_that_is_too_short_is_told_in_which_way(count: int, length: int, told: list[str]) -> None:
    found = list(amount_warnings(samples(count, length), [32, 64]))
    assert len(found) == len(told)
    for warning, words in zip(found, told, strict=True):
        assert words in warning
        assert "too short" in warning


def report(without: float, rounding: float, *, fallback: str | None = None) -> TensorReport:
    return TensorReport(0.1, left_out="a", error_without=without, rounding_without=rounding, fallback=fallback)


def test_a_result_no_better_than_rounding_on_text_left_out_is_told_loudest() -> None:
    good, bad = report(0.01, 0.02), report(0.05, 0.02, fallback="it lost")
    assert list(result_warnings({"p": good, "q": good})) == []
    assert list(result_warnings({"p": TensorReport(0.1)})) == []
    (warning,) = result_warnings({"p": good, "q": bad})
    assert warning.startswith("THE RESULT IS NO BETTER THAN ROUNDING TO NEAREST")
    assert "3.00e-02" in warning
    assert "2.00e-02" in warning
    assert "1 of 2 layers" in warning
    assert list(result_warnings({"p": report(0.0189, 0.02)})) == []
    assert len(list(result_warnings({"p": report(0.0191, 0.02)}))) == 1


def test_a_run_compares_itself_with_rounding_on_what_was_left_out() -> None:
    source = memory_checkpoint(tiny_config())
    run = quantized(source, AffineGroups(bits=4, group_size=32), "gptq", calibration=samples(6, 40))
    read_through(run)
    tensors = run.report()["tensors"].values()
    judged = [tensor for tensor in tensors if tensor["left_out"] is not None]
    assert judged
    for tensor in judged:  # 4 bits round by a twelfth of a step, which is about 1e-2 of the energy of random weights
        assert 1e-3 < tensor["rounding_without"] < 1e-1
