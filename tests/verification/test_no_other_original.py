"""Where nobody has the dense weights, what others quantized may be taken for the original; our own may not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import quantkit
from quantkit.errors import BadOption
from quantkit.verification.golden import read_golden
from quantkit.verification.report import Report
from tests.support.tiny import write_tiny_checkpoint

INT4 = quantkit.QuantizeOptions(method="rtn", scheme=quantkit.AffineGroups(bits=4, group_size=32))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantized GGUF that quantkit made, with its manifest."""
    folder = tmp_path_factory.mktemp("made")
    run = quantkit.quantize(write_tiny_checkpoint(folder / "tiny"), folder / "run", INT4).path
    return quantkit.export("gguf", run, folder / "made.gguf").path


@pytest.fixture(scope="module")
def stranger(made: Path) -> Path:
    """The same file as others make it: nothing says where it comes from."""
    file = made.with_name("stranger.gguf")
    file.write_bytes(made.read_bytes())
    return file


def recorded(model: Path, *, quantized: bool) -> quantkit.Published:
    return quantkit.record_golden(model, model.with_name(f"{model.name}.golden"), quantized=quantized, overwrite=True)


def verified(artifact: Path, golden: Path) -> Report:
    return quantkit.verify(artifact, golden=golden, engine="none", needs_manifest=False)


def test_it_must_be_asked_for(stranger: Path) -> None:
    with pytest.raises(BadOption) as refused:
        recorded(stranger, quantized=False)
    assert refused.value.hint is not None
    assert "--quantized" in refused.value.hint


def test_what_is_not_measured_is_said(stranger: Path) -> None:
    assert any("quantized before" in note for note in recorded(stranger, quantized=True).manifest["notes"])


def test_the_file_itself_passes_and_proves_no_conversion(stranger: Path) -> None:
    report = verified(stranger, recorded(stranger, quantized=True).path)
    assert report.passed, report.lines()
    assert any("not a conversion" in line for line in report.lines())


def test_what_is_exported_from_it_passes(stranger: Path, tmp_path: Path) -> None:
    dense = quantkit.export("hf", stranger, tmp_path / "dense", quantkit.ExportOptions(type="f32")).path
    golden = recorded(stranger, quantized=True).path
    assert verified(dense, golden).passed
    assert verified(quantkit.export("gguf", stranger, tmp_path / "again.gguf").path, golden).passed


def test_the_dense_weights_that_it_stands_for_are_an_original_like_any_other(stranger: Path, tmp_path: Path) -> None:
    dense = quantkit.export("hf", stranger, tmp_path / "dense", quantkit.ExportOptions(type="f32")).path
    golden = recorded(dense, quantized=False)
    assert any("quantized before" in note for note in golden.manifest["notes"])
    assert verified(quantkit.quantize(dense, tmp_path / "run", INT4).path, golden.path).passed
    assert not verified(dense, golden.path).passed  # a file of itself


def test_our_own_is_no_original(made: Path, tmp_path: Path) -> None:
    golden = recorded(made, quantized=True).path
    assert read_golden(golden).quantized
    assert not verified(made, golden).passed


def test_nor_are_the_weights_that_our_own_stands_for(made: Path, tmp_path: Path) -> None:
    dense = quantkit.export("hf", made, tmp_path / "dense").path
    with pytest.raises(BadOption):
        recorded(dense, quantized=False)
    assert "error" in json.dumps(json.loads((dense / "quantkit.json").read_text())["weights"])
