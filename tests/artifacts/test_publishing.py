"""Publishing: what is written, what is refused while it is made, and what replaces what."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import quantkit
from quantkit.artifacts import stage_writer as staging
from quantkit.artifacts.publishing import Published, check_files, publish, read_manifest
from quantkit.errors import (
    OutputExists,
    SourceChanged,
    WriteFailed,
)
from quantkit.files.planned_files import PlannedFile, Unit, blob
from tests.support.planned import DEMO, file_plan, folder_plan, names, unit, write_source

DEMO_MANIFEST = """{
 "figures": {},
 "files": {
  "config.json": {
   "sha256": "ca3d163bab055381827226140568f3bef7eaac187cebd76878e0b63e9e442356",
   "size": 3
  },
  "model.bin": {
   "sha256": "7192385c3c0605de55bb9476ce1d90748190ecb32a8eed7f5207b30cf6a1fe89",
   "size": 6
  }
 },
 "format": "demo",
 "manifest_version": 1,
 "notes": [
  "a note"
 ],
 "options": {
  "arch": "native",
  "bits": 4
 },
 "quantkit": "VERSION",
 "report": {
  "error": 0.5
 },
 "source": [
  {
   "name": "in.safetensors",
   "sha256": "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c",
   "size": 7
  }
 ],
 "tensors": [
  {
   "name": "a",
   "nbytes": 4,
   "shape": [
    2,
    2
   ],
   "type": "u8"
  }
 ]
}
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path / "source")


# What is written


def test_a_folder_holds_the_planned_bytes_and_the_manifest(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    published = publish(DEMO, out, inputs=[source], report=lambda: {"error": 0.5})
    assert names(out) == ["config.json", "model.bin", "quantkit.json"]
    assert (out / "config.json").read_bytes() == b"{}\n"
    assert (out / "model.bin").read_bytes() == b"\1\2\3\4\5\6"
    assert (out / "quantkit.json").read_text() == DEMO_MANIFEST.replace("VERSION", quantkit.__version__)
    assert published == Published(out, 9, json.loads((out / "quantkit.json").read_text()))
    assert names(tmp_path) == ["out", "source"]


def test_a_single_file_takes_the_given_name_and_has_its_manifest_beside_it(tmp_path: Path) -> None:
    publish(file_plan(), tmp_path / "my.gguf")
    assert names(tmp_path) == ["my.gguf", "my.gguf.quantkit.json"]
    assert (tmp_path / "my.gguf").read_bytes() == b"weights"
    manifest = json.loads((tmp_path / "my.gguf.quantkit.json").read_text())
    digest = "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"
    assert manifest["files"] == {"my.gguf": {"size": 7, "sha256": digest}}
    assert (manifest["source"], manifest["report"]) == ([], {})


def test_every_kind_of_buffer_is_written_in_its_memory_order(tmp_path: Path) -> None:
    buffers: list[Any] = [
        b"ab",
        bytearray(b"cd"),
        memoryview(np.array([1, 2], "<i4")),
        np.array([[1.0, 2.0], [3.0, 4.0]], "<f4"),
        np.array([1.5], ml_dtypes.bfloat16),
        np.zeros((0, 3), np.float32),
        b"",
        np.float16(1.0).reshape(()),
    ]
    planned = PlannedFile("x", (Unit("all", 2 + 2 + 8 + 16 + 2 + 2, lambda: buffers), unit("nothing")))
    publish(folder_plan(planned, blob("empty", b"")), tmp_path / "out")
    expected = "6162 6364 01000000 02000000 0000803f 00000040 00004040 00008040 c03f 003c"
    assert (tmp_path / "out" / "x").read_bytes() == bytes.fromhex(expected)
    assert (tmp_path / "out" / "empty").read_bytes() == b""


def test_large_files_pass_the_queue_and_the_read_back_windows_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("PIECE", 1000), ("WINDOW_BYTES", 7000), ("QUEUE_BYTES", 5000)):
        monkeypatch.setattr(staging, name, value)
    rng = np.random.default_rng(1)
    buffers = [rng.bytes(int(size)) for size in rng.integers(1, 9000, 60)]
    planned = [PlannedFile(f"f{i}", (unit("u", *buffers[i : i + 30]), unit("v", *buffers[::7]))) for i in (0, 20)]
    published = publish(folder_plan(*planned), tmp_path / "out")
    for i in (0, 20):
        expected = b"".join([*buffers[i : i + 30], *buffers[::7]])
        assert (tmp_path / "out" / f"f{i}").read_bytes() == expected
        assert published.manifest["files"][f"f{i}"]["sha256"] == hashlib.sha256(expected).hexdigest()


def test_the_producer_waits_when_the_writer_is_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "QUEUE_BYTES", 10_000)
    produced = written = 0
    waiting = []

    def slow(descriptor: int, data: memoryview, offset: int) -> int:
        nonlocal written
        time.sleep(0.001)
        written += len(data)
        return pwrite(descriptor, data, offset)

    def produce() -> Iterator[bytes]:
        nonlocal produced
        for _ in range(100):
            produced += 1000
            waiting.append(produced - written)
            yield bytes(1000)

    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", slow)
    publish(folder_plan(PlannedFile("x", (Unit("u", 100_000, produce),))), tmp_path / "out")
    assert 5_000 < max(waiting) <= 12_000


def test_progress_adds_up_to_the_planned_size_in_the_callers_thread(tmp_path: Path) -> None:
    calls = []
    publish(DEMO, tmp_path / "out", progress=lambda *told: calls.append((*told, threading.get_ident())))
    assert [done for _, done, _, _ in calls] == sorted(done for _, done, _, _ in calls)
    assert calls[-1] == ("checking what was written and read", 9, 9, threading.get_ident())
    assert {call[2:] for call in calls} == {(DEMO.size, threading.get_ident())}
    assert {what for what, *_ in calls[:-1]} == {"writing out"}


def test_the_report_is_asked_for_after_the_last_unit_and_cannot_void_the_work(tmp_path: Path) -> None:
    errors: dict[str, Any] = {}

    def produce() -> Iterator[bytes]:
        errors.update(a=np.float32(0.5), b=float("nan"), c=[np.int64(3), float("inf")], d="half \ud800", e=None)
        yield b"x"

    plan = folder_plan(PlannedFile("x", (Unit("u", 1, produce),)))
    published = publish(plan, tmp_path / "out", report=lambda: errors)
    assert published.manifest["report"] == {"a": 0.5, "b": None, "c": [3, None], "d": "half \\ud800", "e": None}
    assert read_manifest(tmp_path / "out") == published.manifest


CHILD = """
import sys
from pathlib import Path
from quantkit.artifacts.publishing import publish
from quantkit.files.planned_files import *
options = {name: name for name in {"alpha", "beta", "gamma", "delta"}}
files = (blob("b", b"123"), PlannedFile("a", (Unit("u", 1 << 20, lambda: (bytes(1 << 18) for _ in range(4))),)))
publish(PlannedArtifact("demo", True, files, (), options), Path(sys.argv[1]), report=lambda: dict(options))
"""


def test_bytes_do_not_depend_on_folder_hash_seed_or_thread_timing(tmp_path: Path) -> None:
    seen = set()
    for seed, name in (("0", "one"), ("1", "two")):
        (tmp_path / name).mkdir()
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])}
        out = f"out-{name}" if seed == "0" else str(tmp_path / name / f"out-{name}")
        subprocess.run([sys.executable, "-c", CHILD, out], cwd=tmp_path / name, env=environment, check=True)
        files = sorted((tmp_path / name / f"out-{name}").iterdir())
        seen.add(tuple((path.name, path.read_bytes()) for path in files))
    assert len(seen) == 1


@pytest.mark.parametrize(("umask", "file_mode", "folder_mode"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_modes_follow_the_umask(tmp_path: Path, umask: int, file_mode: int, folder_mode: int) -> None:
    before = os.umask(umask)
    try:
        publish(DEMO, tmp_path / "out")
        publish(file_plan(), tmp_path / "out.bin")
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == folder_mode
    files = [*(tmp_path / "out").iterdir(), tmp_path / "out.bin", tmp_path / "out.bin.quantkit.json"]
    assert {path.stat().st_mode & 0o777 for path in files} == {file_mode}


def test_the_output_may_lie_in_the_folder_of_the_input(source: Path) -> None:
    publish(file_plan(), source.parent / "out.bin", inputs=[source])
    assert names(source.parent) == ["in.safetensors", "out.bin", "out.bin.quantkit.json"]


@pytest.mark.parametrize("where", ["sub/..", ".", "link", "link/new"])
def test_odd_ways_to_name_the_output_lead_to_the_same_place(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(work)
    if where.startswith("link"):
        (work / "link").symlink_to(tmp_path / "elsewhere")
    if where == "link":
        with pytest.raises(OutputExists, match="symbolic link"):
            publish(DEMO, Path(where), overwrite=True)
        return
    publish(DEMO, Path(where), overwrite=True)
    place = tmp_path / "elsewhere" / "new" if where == "link/new" else work
    assert names(place) == ["config.json", "model.bin", "quantkit.json"]


def test_a_shell_that_stands_in_the_output_sees_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    publish(DEMO, Path())
    assert names(Path()) == ["config.json", "model.bin", "quantkit.json"]
    assert check_files(Path()) == []
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("moved", range(1, 3))
def test_a_current_folder_that_was_half_filled_is_emptied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    moves = []

    def move(source: Path, target: Path) -> None:
        if len(moves) == moved:
            raise OSError(5, "power")
        moves.append(target.name)
        source.rename(target)

    monkeypatch.setattr("quantkit.artifacts.current_folder.move_new", move)
    with pytest.raises(WriteFailed, match="power"):
        publish(DEMO, Path())
    assert moves == ["model.bin", "config.json"][:moved]
    assert names(Path()) == []
    assert names(tmp_path) == ["out"]


def test_a_file_that_appears_in_the_current_folder_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")

    def produce() -> Iterator[bytes]:
        Path("thesis.tex").write_text("years of work")
        yield b"x"

    with pytest.raises(OutputExists, match="already exists"):
        publish(folder_plan(PlannedFile("x", (Unit("u", 1, produce),))), Path())
    assert names(Path()) == ["thesis.tex"]


# What is refused while it is made


@pytest.mark.parametrize(
    ("buffers", "gave"),
    [((b"abc",), "3"), ((b"abcd", b"e"), "at least 5"), ((b"abcdefgh",) * 9, "at least 8"), ((), "0")],
)
def test_a_unit_of_another_size_than_planned_is_named(tmp_path: Path, buffers: tuple[bytes, ...], gave: str) -> None:
    plan = folder_plan(PlannedFile("x", (unit("good", b"12"), unit("bad", *buffers, size=4), unit("never", b"3"))))
    with pytest.raises(WriteFailed, match=f"x: internal error: unit 'bad' gave {gave} bytes, not 4"):
        publish(plan, tmp_path / "out")
    assert names(tmp_path) == []


@pytest.mark.parametrize("change", ["bytes", "time", "inode", "gone", "longer"])
def test_an_input_that_changes_meanwhile_is_noticed(tmp_path: Path, source: Path, change: str) -> None:
    def produce() -> Iterator[bytes]:
        if change == "bytes":
            source.write_bytes(b"WEIGHTS")
        elif change == "time":
            os.utime(source, ns=(0, 0))
        elif change == "longer":
            source.write_bytes(b"weights and more")
        else:
            source.rename(source.with_name("moved"))
            if change == "inode":
                source.write_bytes(b"weights")
        yield b"x"

    with pytest.raises(SourceChanged, match=r"in\.safetensors"):
        publish(folder_plan(PlannedFile("x", (Unit("u", 1, produce),))), tmp_path / "out", inputs=[source])
    assert names(tmp_path) == ["source"]


def test_what_a_producer_raises_passes_through_and_nothing_stays(tmp_path: Path) -> None:
    def produce() -> Iterator[bytes]:
        yield b"x"
        raise OSError(5, "the input cannot be read")

    with pytest.raises(OSError, match="the input cannot be read"):
        publish(folder_plan(PlannedFile("x", (Unit("u", 2, produce),))), tmp_path / "out")
    assert names(tmp_path) == []


@pytest.mark.parametrize("hook", ["progress", "report"])
def test_what_a_callback_raises_passes_through_and_nothing_stays(tmp_path: Path, hook: str) -> None:
    def fail(*_: object) -> Any:
        raise ZeroDivisionError

    hooks: dict[str, Any] = {hook: fail}
    with pytest.raises(ZeroDivisionError):
        publish(DEMO, tmp_path / "out", **hooks)
    assert names(tmp_path) == []


# What replaces what


def test_overwrite_replaces_a_whole_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    publish(folder_plan(blob("config.json", b"old"), blob("stale.safetensors", b"old")), out)
    publish(DEMO, out, overwrite=True)
    assert names(out) == ["config.json", "model.bin", "quantkit.json"]
    assert check_files(out) == []
    assert names(tmp_path) == ["out"]


def test_overwrite_replaces_a_file_and_its_manifest(tmp_path: Path) -> None:
    publish(file_plan(b"old"), tmp_path / "out")
    publish(file_plan(b"new"), tmp_path / "out", overwrite=True)
    assert (tmp_path / "out").read_bytes() == b"new"
    assert check_files(tmp_path / "out") == []
    assert names(tmp_path) == ["out", "out.quantkit.json"]


def test_overwrite_of_nothing_and_of_an_empty_folder_just_writes(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new"):
        publish(DEMO, tmp_path / name, overwrite=True)
        assert check_files(tmp_path / name) == []


def test_a_manifest_that_lost_its_file_is_replaced_with_it(tmp_path: Path) -> None:
    publish(file_plan(b"old"), tmp_path / "out")
    (tmp_path / "out").unlink()
    publish(file_plan(b"new"), tmp_path / "out")
    assert check_files(tmp_path / "out") == []
