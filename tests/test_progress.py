"""Work in stages, told as one."""

from __future__ import annotations

import pytest

from quantkit.progress import StagedWork


def test_stages_add_up_by_their_weights():
    told = []
    work = StagedWork(lambda *step: told.append(step), {"text": 10.0, "blocks": 30.0, "writing": 60.0})
    work.stage("text")("tokens", 1, 4)
    work.stage("writing", beside=True)("bytes", 50, 100)
    work.stage("blocks")("block 1", 0, 2)  # what comes before is done now, what goes on beside is not
    work.stage("blocks")("block 2", 1, 2)
    work.stage("blocks")("late", 0, 2)
    work.stage("writing")("all", 3, 3)
    assert told == [
        ("tokens", 2.5, 100),
        ("bytes", 32.5, 100),
        ("block 1", 40, 100),
        ("block 2", 55, 100),
        ("late", 55, 100),
        ("all", 100, 100),
    ]


def test_what_need_not_be_done_counts_nothing():
    told = []
    work = StagedWork(lambda *step: told.append(step), {"kept": 50.0, "made": 50.0})
    work.skip("kept")
    work.stage("made")("made", 1, 5)
    assert told == [("made", 10, 50)]


def test_a_stage_without_any_work_is_done_when_it_is_told_of():
    told = []
    StagedWork(lambda *step: told.append(step), {"empty": 4.0}).stage("empty")("empty", 0, 0)
    assert told == [("empty", 4, 4)]


def test_what_progress_raises_ends_the_work():
    def stop(what: str, done: float, total: float, /) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        StagedWork(stop, {"one": 1.0}).stage("one")("one", 1, 2)
