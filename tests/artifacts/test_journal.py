"""The journal of a run: whose steps it recalls, and which folders it does not trust."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from quantkit.artifacts.journal import Journal
from quantkit.artifacts.output_paths import Destination
from quantkit.errors import OutputExists, WriteFailed
from tests.support.killed_runs import quantize, write_model
from tests.support.stopped_runs import stop, work


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("resume") / "model")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_what_follows_from_other_bytes_is_not_recalled(tmp_path: Path) -> None:
    def journal(key: bytes = b"key") -> Journal:
        return Journal(Destination(tmp_path / "out", tmp_path / "out", True), key)

    with pytest.raises(OSError, match="power"), journal() as steps:
        for name in "abc":
            steps.keep(name, name.encode())
        raise OSError("power")
    with pytest.raises(OSError, match="power"), journal() as steps:
        assert [steps.recall(name) for name in "abcd"] == [b"a", b"b", b"c", None]
        raise OSError("power")
    with pytest.raises(OSError, match="power"), journal() as steps:
        assert steps.recall("a") == b"a"
        steps.keep("b", b"other")
        assert steps.recall("c") is None
        steps.keep("c", b"c")
        raise OSError("power")
    with pytest.raises(OSError, match="power"), journal(b"other key") as steps:
        assert [steps.recall(name) for name in "abc"] == [None, None, None]
        steps.keep("a", b"a")
        assert steps.recall("b") is None
        raise OSError("power")
    with journal() as steps:
        assert steps.recall("a") is None
    assert list(tmp_path.iterdir()) == []


def test_a_state_is_that_of_its_step_and_its_run(tmp_path: Path) -> None:
    def journal(key: bytes = b"key") -> Journal:
        return Journal(Destination(tmp_path / "out", tmp_path / "out", True), key)

    with pytest.raises(OSError, match="power"), journal() as steps:
        assert steps.saved("b") is None
        steps.save("b", [b"before a"])
        steps.keep("a", b"a")
        assert steps.saved("b") is None
        steps.save("b", [b"one"])
        steps.save("b", [b"t", b"", memoryview(b"wo")])
        raise OSError("power")
    with pytest.raises(OSError, match="power"), journal() as steps:
        assert steps.saved("b") is None
        assert [steps.recall("a"), steps.saved("b"), steps.saved("b")] == [b"a", b"two", b"two"]
        assert steps.saved("c") is None
        raise OSError("power")
    with pytest.raises(OSError, match="power"), journal() as steps:
        steps.keep("a", b"another")
        assert steps.saved("b") is None
        raise OSError("power")
    with pytest.raises(OSError, match="power"), journal(b"other key") as steps:
        assert steps.saved("b") is None
        steps.save("b", [b"three"])
        raise OSError("power")
    assert (tmp_path / ".out.quantkit-work" / "b").exists(), "a state alone is worth keeping"
    with journal(b"other key") as steps:
        assert steps.saved("b") == b"three"
    assert list(tmp_path.iterdir()) == []


def test_two_runs_for_one_name_do_not_meet(model: Path, out: Path) -> None:
    with (
        Journal(Destination(out, out, True), b"key"),
        pytest.raises(OutputExists, match=f"another quantkit .pid {os.getpid()}. is writing it"),
    ):
        quantize(model, out)
    quantize(model, out)


def test_a_folder_of_another_user_is_not_trusted(model: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop(model, out, 2)
    with monkeypatch.context() as patch:
        patch.setattr("os.geteuid", lambda: 12345)
        with pytest.raises(WriteFailed, match=r"quantkit-work is not a folder of yours"):
            quantize(model, out)
    elsewhere = work(out).rename(out.with_name("elsewhere"))
    work(out).symlink_to(elsewhere)
    with pytest.raises(WriteFailed, match=r"quantkit-work is not a folder of yours"):
        quantize(model, out)
    assert len(list(elsewhere.iterdir())) == 3
