"""What generating calibration text takes, for progress and plans."""

from __future__ import annotations

import math
import time

import pytest

from quantkit.calibration.own_text.generation_work import (
    LARGEST_BATCH,
    batch_size,
    generation_memory,
    generation_work,
    step_work,
    steps_work,
)
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


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 512), (7, 8), (100, 900), (5, 5)])
def test_steps_take_what_each_of_them_takes(model: Checkpoint, start: int, stop: int, bfloat16: bool) -> None:
    one_by_one = sum(step_work(model.spec, 16, position, bfloat16=bfloat16) for position in range(start, stop))
    assert steps_work(model.spec, 16, start, stop, bfloat16=bfloat16) == pytest.approx(one_by_one, rel=1e-12)


@pytest.mark.parametrize(
    ("sequences", "size", "batches"),
    [(1, 16, 1), (16, 16, 1), (17, 16, 2), (32, 16, 2), (33, 17, 2), (128, 64, 2), (129, 33, 4), (512, 64, 8)],
)
def test_batches_take_what_their_steps_take(model: Checkpoint, sequences: int, size: int, batches: int) -> None:
    assert batch_size(sequences) == size <= LARGEST_BATCH
    options = CalibrationOptions(sequences=sequences, length=64)
    assert generation_work(model.spec, options) == pytest.approx(batches * steps_work(model.spec, size, 0, 64))


def test_larger_batches_take_less_per_sequence(model: Checkpoint) -> None:
    for bfloat16 in (False, True):
        assert step_work(model.spec, 64, 100, bfloat16=bfloat16) < 4 * step_work(model.spec, 16, 100, bfloat16=bfloat16)


def test_memory_is_the_model_and_what_busy_threads_keep(model: Checkpoint) -> None:
    spec, options = model.spec, CalibrationOptions(sequences=40, length=64)
    weights = sum(math.prod(slot.shape) for slot in spec.slots())
    alone = generation_memory(spec, options, threads=1)
    kept = 20 * 64 * spec.num_hidden_layers * spec.num_key_value_heads * spec.head_dim * 2 * 4
    logits = 20 * 4 * spec.vocab_size
    assert alone >= 4 * weights + kept + logits
    assert generation_memory(spec, options, threads=2) - alone == kept + logits
    assert generation_memory(spec, options, threads=64) == generation_memory(spec, options, threads=2)
    assert generation_memory(spec, options, threads=1, bfloat16=True) < alone


def test_a_length_beyond_all_contexts_is_refused_at_once(model: Checkpoint) -> None:
    options = QuantizeOptions(calibration=CalibrationOptions(length=MAX_LENGTH))
    start = time.process_time()
    with pytest.raises(BadOption, match=r"memory|context"):
        Quantization(model, options).calibrate()
    assert time.process_time() - start < 5
