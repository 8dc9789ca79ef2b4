"""What publishing refuses before any work, with nothing produced and nothing touched."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quantkit.artifacts.publishing import preflight, publish
from quantkit.errors import (
    MalformedFile,
    NoSpace,
    OutputExists,
    QuantkitError,
    UnsafePath,
    WriteFailed,
)
from quantkit.files.planned_files import PlannedArtifact, PlannedFile, Unit, blob
from tests.support.planned import DEMO, file_plan, folder_plan, names, write_source


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path / "source")


def never() -> Iterator[bytes]:
    raise AssertionError("a unit was produced")
    yield b""


UNREACHABLE = folder_plan(PlannedFile("x", (Unit("u", 1, never),)))


def refused(
    kind: type[QuantkitError], message: str, out: Path, planned: PlannedArtifact = UNREACHABLE, **options: Any
) -> None:
    """`publish` and `preflight` refuse with one line, produce nothing and leave the folder as it was."""
    parent = out.parent if out.parent.is_dir() else out.parent.parent
    before = names(parent)
    for attempt in (publish, preflight):
        with pytest.raises(kind, match=message) as caught:
            attempt(planned, out, **options)
        assert type(caught.value) is kind
        assert "\n" not in str(caught.value)
    assert names(parent) == before


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("nowhere")])
def test_a_taken_name_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "out")
    refused(OutputExists, "out already exists$", tmp_path / "out")


@pytest.mark.parametrize("name", ["thesis.tex", "config.json"])
def test_a_folder_that_quantkit_did_not_write_is_never_replaced(tmp_path: Path, name: str) -> None:
    out = tmp_path / "home"
    out.mkdir()
    (out / name).write_text("years of work")
    refused(OutputExists, "was not written by quantkit", out, overwrite=True)
    assert names(out) == [name]


def test_what_somebody_put_into_an_artifact_is_never_lost(tmp_path: Path) -> None:
    out = tmp_path / "out"
    publish(DEMO, out)
    (out / "notes.txt").write_text("what I measured")
    (out / "plots").mkdir()
    refused(OutputExists, "holds 'notes.txt' and 1 more, not written by quantkit", out, overwrite=True)
    assert (out / "notes.txt").read_text() == "what I measured"


@pytest.mark.parametrize("sidecar", [None, "{}", "not JSON"])
def test_a_file_without_a_manifest_is_never_replaced(tmp_path: Path, sidecar: str | None) -> None:
    out = tmp_path / "thesis"
    out.write_text("years of work")
    if sidecar is not None:
        (tmp_path / "thesis.quantkit.json").write_text(sidecar)
    single = folder_plan(*UNREACHABLE.files, folder=False)
    wanted: tuple[type[QuantkitError], str] = (OutputExists, "was not written by quantkit")
    refused(*(wanted if sidecar is None else (MalformedFile, "manifest|JSON")), out, single, overwrite=True)
    assert out.read_text() == "years of work"


def test_the_current_folder_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(DEMO, tmp_path / "out")
    monkeypatch.chdir(tmp_path / "out")
    refused(OutputExists, "is the current folder", Path(), overwrite=True)
    refused(OutputExists, "is the current folder", Path("../out"), overwrite=True)


def test_only_like_replaces_like(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    os.mkfifo(tmp_path / "pipe")
    single = folder_plan(*UNREACHABLE.files, folder=False)
    refused(OutputExists, "is not a folder", tmp_path / "file", overwrite=True)
    refused(OutputExists, "is not a file", tmp_path / "folder", single, overwrite=True)
    refused(OutputExists, "is not a file", tmp_path / "pipe", single, overwrite=True)
    refused(OutputExists, "symbolic link", tmp_path / "link", overwrite=True)


def test_the_input_itself_is_never_replaced(source: Path) -> None:
    single = folder_plan(*UNREACHABLE.files, folder=False)
    refused(OutputExists, "is, or holds, the input", source, single, inputs=[source], overwrite=True)


def test_another_name_of_the_input_is_never_replaced(tmp_path: Path, source: Path) -> None:
    single = folder_plan(*UNREACHABLE.files, folder=False)
    os.link(source, tmp_path / "hard")
    refused(OutputExists, "is, or holds, the input", tmp_path / "hard", single, inputs=[source], overwrite=True)
    (tmp_path / "soft").symlink_to(source)
    refused(OutputExists, "is, or holds, the input", source, single, inputs=[tmp_path / "soft"], overwrite=True)
    refused(OutputExists, "is, or holds, the input", tmp_path / "soft", single, inputs=[source], overwrite=True)


def test_a_folder_that_holds_the_input_is_never_replaced(tmp_path: Path, source: Path) -> None:
    (source.parent / "config.json").write_text("{}")
    refused(OutputExists, "is, or holds, the input", source.parent, inputs=[source], overwrite=True)
    refused(OutputExists, "is, or holds, the input", tmp_path, inputs=[source], overwrite=True)
    (tmp_path / "link.safetensors").symlink_to(source)
    refused(
        OutputExists, "is, or holds, the input", source.parent, inputs=[tmp_path / "link.safetensors"], overwrite=True
    )
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "linked.safetensors").symlink_to(source)
    (snapshot / "config.json").write_text("{}")
    inputs = [snapshot / "linked.safetensors"]
    refused(OutputExists, "is, or holds, the input", snapshot, inputs=inputs, overwrite=True)


def test_an_input_beside_the_current_folder_is_not_in_it(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    way = Path("..", source.parent.name, source.name)
    preflight(DEMO, Path(), inputs=[way])
    (source.parent / "sub").mkdir()
    monkeypatch.chdir(source.parent / "sub")
    refused(OutputExists, "is, or holds, the input", source.parent, inputs=[Path("..", source.name)], overwrite=True)


def test_the_stage_never_replaces_an_input(tmp_path: Path) -> None:
    stage = tmp_path / ".out.quantkit-part"
    stage.write_text("weights")
    refused(OutputExists, "is, or holds, the input", tmp_path / "out", inputs=[stage])


def test_the_parent_must_be_there(tmp_path: Path) -> None:
    refused(WriteFailed, "missing does not exist", tmp_path / "missing" / "out")


def test_the_parent_must_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(WriteFailed, "file is not a folder", tmp_path / "file" / "out")


def test_the_parent_must_be_writable(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        with pytest.raises(WriteFailed, match=r"^/proc/out: "):
            publish(UNREACHABLE, Path("/proc/out"))
        return
    (tmp_path / "closed").mkdir(mode=0o555)
    refused(WriteFailed, "no permission to write", tmp_path / "closed" / "out")


def test_a_loop_of_links_is_no_place(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused(WriteFailed, "not a usable path|does not exist|is not a folder", tmp_path / "loop" / "out")


def test_the_root_is_no_output() -> None:
    refused(OutputExists, "^/ cannot be replaced", Path("/"))


def test_the_name_must_leave_room_for_our_suffixes(tmp_path: Path) -> None:
    limit = os.pathconf(tmp_path, "PC_NAME_MAX") - len("..quantkit-part")
    publish(DEMO, tmp_path / ("é" * (limit // 2)))
    publish(file_plan(), tmp_path / ("x" * limit))
    refused(WriteFailed, "name is too long", tmp_path / ("y" * (limit + 1)))
    refused(WriteFailed, "name is too long", tmp_path / ("é" * (limit // 2 + 1)))


def disk(free: int) -> Callable[[Any], Any]:
    return lambda path: SimpleNamespace(f_bavail=free, f_frsize=1, f_blocks=1 << 40)


def test_the_disk_must_hold_the_plan_the_manifest_and_two_percent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = folder_plan(PlannedFile("x", (Unit("u", 4_310_000_000, never),)))
    monkeypatch.setattr(os, "statvfs", disk(4_300_000_000))
    refused(NoSpace, r"out: needs 4\.40 GB, 4\.30 GB free$", tmp_path / "out", plan)
    monkeypatch.setattr(os, "statvfs", disk(4_310_000_000 * 102 // 100 + (1 << 20)))
    refused(NoSpace, r"out: needs \d{10} bytes, \d{10} bytes free$", tmp_path / "out", plan)
    monkeypatch.setattr(os, "statvfs", disk(4_310_000_000 * 102 // 100 + (2 << 20)))
    preflight(plan, tmp_path / "out")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc/passwd", "..\\x", "a\0b", "half \ud800"])
def test_a_planned_name_must_be_bare(tmp_path: Path, name: str) -> None:
    refused(UnsafePath, "is not a bare file name", tmp_path / "out", folder_plan(blob(name, b"x")))


@pytest.mark.parametrize("files", [("a", "a"), ("quantkit.json",)])
def test_planned_names_must_not_collide(tmp_path: Path, files: tuple[str, ...]) -> None:
    plan = folder_plan(*(blob(name, b"x") for name in files))
    refused(UnsafePath, "is needed twice", tmp_path / "out", plan)


def test_a_single_file_artifact_has_one_file(tmp_path: Path) -> None:
    plan = folder_plan(blob("a", b""), blob("b", b""), folder=False)
    refused(WriteFailed, "internal error: demo plans 2 files", tmp_path / "out", plan)
