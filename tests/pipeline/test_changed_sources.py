"""A source that is edited while a run goes on is noticed, though its size and its time of change are put back."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from quantkit import registry
from quantkit.artifacts.manifest import read_manifest
from quantkit.artifacts.publishing import publish
from quantkit.errors import SourceChanged
from quantkit.pipeline.quantization import Quantization
from quantkit.protocols import ExportOptions
from quantkit.verification.prompts import Prompt
from quantkit.verification.recording import record
from tests.support.killed_runs import quantize, write_model
from tests.support.stopped_runs import STEPS, stop, work

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def edit(path: Path) -> None:
    """Change the last byte of `path`, and put back the time of its change."""
    state = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (state.st_size, state.st_mtime_ns)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The first shard holds what is not quantized, the second what is."""
    folder = write_model(tmp_path / "model")
    tensors = load_file(folder / FIRST) | load_file(folder / SECOND)
    linear = {name: value for name, value in tensors.items() if "_proj" in name}
    save_file({name: value for name, value in tensors.items() if name not in linear}, folder / FIRST)
    save_file(linear, folder / SECOND)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {name: SECOND if name in linear else FIRST for name in tensors}})
    )
    return folder


class At:
    """Progress that calls `act` when it is told for the time `number`, counted from the end if negative."""

    def __init__(self, number: int, act: Callable[[], None]) -> None:
        self.number, self.act, self.calls = number, act, 0

    def __call__(self, what: str, done: int, total: int) -> None:
        if self.calls == self.number or (self.number < 0 and done == total):
            self.number = 1 << 40
            self.act()
        self.calls += 1


@pytest.mark.parametrize("shard", [FIRST, SECOND])
@pytest.mark.parametrize("moment", [0, 1, -1])
@pytest.mark.parametrize("container", ["hf", "gguf"])
def test_an_export_whose_source_is_edited_meanwhile_is_not_published(
    container: str, moment: int, shard: str, model: Path, tmp_path: Path
) -> None:
    checkpoint = registry.open_checkpoint(model)
    planned = registry.exporter(container).prepare(checkpoint, ExportOptions())
    progress = At(moment, lambda: edit(model / shard))
    with pytest.raises(SourceChanged, match=shard):
        publish(planned, tmp_path / "out", inputs=checkpoint.inputs, progress=progress)
    assert progress.number == 1 << 40
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("shard", [FIRST, SECOND])
def test_an_export_of_a_source_that_was_edited_after_opening_is_not_published(
    shard: str, model: Path, tmp_path: Path
) -> None:
    checkpoint = registry.open_checkpoint(model)
    planned = registry.exporter("hf").prepare(checkpoint, ExportOptions())
    edit(model / shard)
    with pytest.raises(SourceChanged, match=shard):
        publish(planned, tmp_path / "out", inputs=checkpoint.inputs)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("steps", [0, 1, len(STEPS)])
def test_a_run_whose_source_is_edited_after_its_first_digest_is_not_published(
    steps: int, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where every block is recalled and the edited file is never read."""
    out = tmp_path / "area" / "out"
    out.parent.mkdir()
    if steps:
        stop(model, out, steps)
    calibrate = Quantization.calibrate

    def edited(run: Quantization) -> None:
        edit(model / SECOND)
        calibrate(run)

    monkeypatch.setattr(Quantization, "calibrate", edited)
    with pytest.raises(SourceChanged, match=SECOND):
        quantize(model, out)
    assert not out.exists()
    assert set(out.parent.iterdir()) <= {work(out)}


def test_the_digest_of_a_run_is_that_of_the_bytes_that_were_used(model: Path, tmp_path: Path) -> None:
    quantize(model, tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None
    assert manifest["source"] == [
        {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in ((name, (model / name).read_bytes()) for name in (FIRST, SECOND))
    ]


@pytest.mark.parametrize("shard", [FIRST, SECOND])
def test_golden_logits_of_a_source_that_is_edited_meanwhile_are_not_recorded(shard: str, model: Path) -> None:
    checkpoint = registry.open_checkpoint(model)
    prompts = [Prompt("a", None, (1, 5, 9))]
    with pytest.raises(SourceChanged, match=shard):
        record(checkpoint, prompts, progress=At(0, lambda: edit(model / shard)))
