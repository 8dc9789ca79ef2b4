"""Progress of a quantization run: what it says, in what order, and how well time left follows from it."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from quantkit.calibration.compute import Compute
from quantkit.calibration.samples import CalibrationFile, CalibrationOptions
from quantkit.errors import Interrupted
from quantkit.pipeline.options import QuantizeOptions
from quantkit.pipeline.runs import quantize
from quantkit.progress import Progress

MODEL = Path(__file__).resolve().parents[2] / "golden" / "model"
GROUPS = ("q,k,v", "o", "gate,up", "down")
SHORT = CalibrationOptions(sequences=4, length=32)


def run(out: Path, progress: Progress, **choices: Any) -> None:
    quantize(MODEL, out, QuantizeOptions(**choices), compute=Compute(threads=1), progress=progress)


@pytest.fixture(scope="module")
def defaults(tmp_path_factory) -> list[tuple[float, str, float, float]]:
    """Processor seconds, and what was told, of a run on a quarter of the usual text, on one thread."""
    told = []
    start = time.process_time()
    out = tmp_path_factory.mktemp("run") / "int4"
    options = CalibrationOptions(sequences=32)
    run(out, lambda *step: told.append((time.process_time() - start, *step)), calibration=options)
    return told


def stages(told: list[tuple[float, str, float, float]]) -> list[str]:
    return list(dict.fromkeys(what for _, what, _, _ in told))


def test_every_stage_is_told_in_order(defaults):
    blocks = [f"block {number} of 5: {group}" for number in range(1, 6) for group in GROUPS]
    assert [what for what in stages(defaults) if what != "writing int4"] == [
        "generating calibration text",
        "Fisher pass",
        *blocks,
        "measuring predictions",
        "checking what was written and read",
    ]


def test_work_that_is_done_only_grows_up_to_all_of_it(defaults):
    done = [done for _, _, done, _ in defaults]
    assert done == sorted(done)
    (total,) = {total for *_, total in defaults}
    assert done[-1] == pytest.approx(total)


@pytest.mark.slow
def test_after_a_tenth_the_time_that_all_takes_is_told_within_a_factor_of_two(defaults):
    whole = defaults[-1][0]
    predictions = [seconds * total / done for seconds, _, done, total in defaults if done >= total / 10]
    assert whole / 2 <= min(predictions)
    assert max(predictions) <= whole * 2


def test_nothing_is_silent_for_more_than_three_seconds(defaults):
    times = [seconds for seconds, *_ in defaults]
    assert max(later - earlier for earlier, later in pairwise(times)) < 3


def test_blocks_that_an_earlier_run_has_done_do_not_count(tmp_path: Path):
    whole = []

    def stop(what: str, done: float, total: float, /) -> None:
        whole.append(total)
        if what.startswith("block 3"):
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        run(tmp_path / "int4", stop, calibration=SHORT)
    told = []
    run(tmp_path / "int4", lambda *step: told.append((0.0, *step)), calibration=SHORT)
    assert not [what for what in stages(told) if what.startswith(("generating", "block 1", "block 2"))]
    begin = next(total for _, what, _, total in told if what.startswith("block 3"))
    assert begin < 0.8 * whole[0]
    assert told[-1][2] == pytest.approx(told[-1][3]) == pytest.approx(begin)


def test_without_calibration_writing_is_all_the_work(tmp_path: Path):
    told = []
    run(tmp_path / "int4", lambda *step: told.append((0.0, *step)), method="rtn")
    assert stages(told) == ["writing int4", "checking what was written and read"]
    assert told[-1][2] == told[-1][3]


def test_text_from_a_file_is_read_and_not_generated(tmp_path: Path):
    text = tmp_path / "text.txt"
    text.write_text("A line of text. " * 400)
    told = []
    options = replace(SHORT, files=(CalibrationFile(path=text),), own_text=False)
    run(tmp_path / "int4", lambda *step: told.append((0.0, *step)), calibration=options)
    assert [what for what in stages(told) if what != "writing int4"][:2] == ["reading calibration text", "Fisher pass"]
