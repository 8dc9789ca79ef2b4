"""What generating calibration text takes, for progress and plans."""

from __future__ import annotations

import time

import pytest

from quantkit.calibration.generation_work import BATCH, generation_work, step_work, steps_work
from quantkit.calibration.samples import MAX_LENGTH, CalibrationOptions
from quantkit.errors import BadOption
from quantkit.models.checkpoint import Checkpoint
from quantkit.pipeline.options import QuantizeOptions
from quantkit.pipeline.quantization import Quantization
from quantkit.registry import open_checkpoint
from tests.support.tiny import write_tiny_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(write_tiny_checkpoint(tmp_path_factory.mktemp("work") / "tiny"))


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 512), (7, 8), (100, 900), (5, 5)])
def test_steps_take_what_each_of_them_takes(model: Checkpoint, start: int, stop: int) -> None:
    one_by_one = sum(step_work(model.spec, position) for position in range(start, stop))
    assert steps_work(model.spec, start, stop) == pytest.approx(one_by_one, rel=1e-12)


def test_batches_take_what_their_steps_take(model: Checkpoint) -> None:
    options = CalibrationOptions(sequences=BATCH + 1, length=64)
    assert generation_work(model.spec, options) == pytest.approx(2 * steps_work(model.spec, 0, 64), rel=1e-12)


def test_a_length_beyond_all_contexts_is_refused_at_once(model: Checkpoint) -> None:
    options = QuantizeOptions(calibration=CalibrationOptions(length=MAX_LENGTH))
    start = time.process_time()
    with pytest.raises(BadOption, match=r"memory|context"):
        Quantization(model, options).calibrate()
    assert time.process_time() - start < 5
