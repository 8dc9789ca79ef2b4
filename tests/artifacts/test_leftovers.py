"""What killed runs leave is told with its size, or removed by the next run for its name; nothing else is touched."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import quantkit
from quantkit.artifacts.journal import Journal, seal
from quantkit.artifacts.leftovers import leftovers
from quantkit.artifacts.manifest import manifest_path
from quantkit.artifacts.output_lock import Lock
from quantkit.artifacts.output_paths import Destination
from quantkit.artifacts.publishing import clean_up, publish
from quantkit.cli.app import main
from quantkit.errors import OutputExists
from tests.support.faults import plan

MEGABYTE = 1 << 20


def left(folder: Path, name: str, size: int = MEGABYTE) -> Path:
    path = folder / name
    path.mkdir()
    (path / "model.bin").write_bytes(b"x" * size)
    return path


def killed_after_publishing(folder: Path) -> Destination:
    """A finished output, and beside it the steps of the run that made it."""
    destination = Destination(folder / "out", folder / "out", True)
    with pytest.raises(OSError, match="killed"), Journal(destination, b"key") as steps:
        steps.keep("a", b"x" * MEGABYTE)
        publish(plan(True), destination.path)
        raise OSError("killed")
    assert destination.work.exists()
    return destination


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("part", "the next command that writes other removes it"),
        ("old", "the next command that writes other puts it back or removes it"),
        ("work", "the same command again continues it"),
    ],
)
def test_what_another_run_left_is_told_with_its_size_and_left_alone(tmp_path: Path, kind: str, words: str) -> None:
    path = left(tmp_path, f".other.quantkit-{kind}")
    (line,) = publish(plan(True), tmp_path / "out").leftovers
    assert line.startswith(f"{path} (1.05 MB) is left of a run that was killed: ")
    assert words in line
    assert (path / "model.bin").stat().st_size == MEGABYTE


@pytest.mark.parametrize(
    "name",
    [
        ".other.quantkit-cache",
        "other.quantkit-part",
        ".quantkit-part",
        "..quantkit-part",
        ".other.quantkit-part.bak",
        ".git",
        ".other.quantkit-lock",
    ],
)
def test_a_name_that_is_not_ours_is_not_told(tmp_path: Path, name: str) -> None:
    left(tmp_path, name)
    assert leftovers(tmp_path) == ()


def test_a_link_and_a_file_of_such_a_name_are_not_told(tmp_path: Path) -> None:
    left(tmp_path, "elsewhere")
    (tmp_path / ".a.quantkit-part").symlink_to(tmp_path / "elsewhere")
    (tmp_path / ".b.quantkit-part").write_text("x")
    assert leftovers(tmp_path) == ()
    assert leftovers(tmp_path / "nowhere") == ()


@pytest.mark.parametrize("kind", ["lock", "run"])
def test_what_a_living_run_holds_is_not_told(tmp_path: Path, kind: str) -> None:
    left(tmp_path, ".other.quantkit-part")
    with Lock(tmp_path / f".other.quantkit-{kind}", tmp_path / "other"):
        assert leftovers(tmp_path) == ()
    assert len(leftovers(tmp_path)) == 1


@pytest.mark.parametrize("holder", [b"", b"no number", b"99999999999999999999", b"4194305\n"])
def test_a_lock_of_nobody_holds_nothing(tmp_path: Path, holder: bytes) -> None:
    left(tmp_path, ".other.quantkit-part")
    (tmp_path / ".other.quantkit-lock").write_bytes(holder)
    assert len(leftovers(tmp_path)) == 1


def test_steps_of_a_run_that_has_published_are_removed(tmp_path: Path) -> None:
    destination = killed_after_publishing(tmp_path)
    seal(destination, manifest_path(destination.path).read_bytes())
    clean_up(plan(True), destination.path)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("change", ["no seal", "another output", "an empty seal", "no output"])
def test_steps_that_may_be_wanted_are_kept(tmp_path: Path, change: str) -> None:
    destination = killed_after_publishing(tmp_path)
    manifest = manifest_path(destination.path)
    seal(destination, manifest.read_bytes())
    if change == "no output":
        shutil.rmtree(destination.path)
    elif change == "another output":
        manifest.write_bytes(manifest.read_bytes() + b" ")
    else:
        seals = destination.work / "published"
        seals.unlink() if change == "no seal" else seals.write_bytes(b"")
    clean_up(plan(True), destination.path)
    assert (destination.work / "a").stat().st_size > MEGABYTE


def test_a_run_that_goes_on_takes_the_seal_of_the_last_one_away(tmp_path: Path) -> None:
    """Or its own steps would be removed for what the last one published."""
    destination = killed_after_publishing(tmp_path)
    seal(destination, manifest_path(destination.path).read_bytes())
    with pytest.raises(OSError, match="killed"), Journal(destination, b"other") as steps:
        steps.keep("a", b"new")
        raise OSError("killed")
    clean_up(plan(True), destination.path)
    assert (destination.work / "a").exists()


def test_nothing_is_touched_while_somebody_works_on_it(tmp_path: Path) -> None:
    destination = killed_after_publishing(tmp_path)
    seal(destination, manifest_path(destination.path).read_bytes())
    with Lock(destination.run, destination.path), pytest.raises(OutputExists, match=f"pid {os.getpid()}"):
        clean_up(plan(True), destination.path)
    assert destination.work.exists()


def test_inspect_and_export_tell_of_them(
    tmp_path: Path, golden_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(golden_model, model)
    left(tmp_path, ".earlier.gguf.quantkit-part")
    for arguments in (
        ["inspect", str(model)],
        ["export", "hf", str(model), "--arch", "llama", "--out", str(tmp_path / "out")],
    ):
        assert main(arguments) == 0
        said = " ".join(capsys.readouterr().err.split())
        assert ".earlier.gguf.quantkit-part (1.05 MB) is left of a run that was killed" in said
    assert quantkit.leftovers(tmp_path) == leftovers(tmp_path)


def test_quantizing_to_a_finished_output_removes_what_its_run_left(tmp_path: Path, golden_model: Path) -> None:
    out = quantkit.quantize(golden_model, tmp_path / "out", quantkit.QuantizeOptions(method="rtn")).path
    destination = Destination(out, out, True)
    destination.work.mkdir()
    (destination.work / "block-00000").write_bytes(b"x" * MEGABYTE)
    seal(destination, manifest_path(out).read_bytes())
    left(tmp_path, ".out.quantkit-part")
    with pytest.raises(OutputExists, match="already exists"):
        quantkit.quantize(golden_model, out, quantkit.QuantizeOptions(method="rtn"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
