"""Artifacts that were right when they were made: changed since, compared with themselves, or without a manifest."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit import registry
from quantkit.artifacts import manifest as manifests
from quantkit.artifacts.manifest import manifest_path
from quantkit.artifacts.publishing import publish
from quantkit.cli.app import main
from quantkit.errors import BadOption
from quantkit.models.checkpoint import Checkpoint
from quantkit.pipeline.options import QuantizeOptions
from quantkit.pipeline.quantization import Quantization
from quantkit.protocols import ExportOptions
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView
from quantkit.text.tokenizer import open_tokenizer
from quantkit.text.tokenizers.writing import vocabulary_files
from quantkit.text.vocabulary import read_vocabulary
from quantkit.verification.golden import Golden, read_golden
from quantkit.verification.prompts import default_prompts
from quantkit.verification.proof import verify
from quantkit.verification.recording import recorded
from tests.support.wrong_models import signed


@pytest.fixture(scope="module")
def golden(golden_model: Path) -> Golden:
    return read_golden(golden_model.parent / "golden.bin")


@pytest.fixture(scope="module")
def run(golden_model: Path, tmp_path_factory) -> Path:
    """The golden model in 4 bits, a folder."""
    made = Quantization(
        registry.open_checkpoint(golden_model),
        QuantizeOptions(method="rtn", scheme=AffineGroups(bits=4, group_size=128)),
    )
    planned = registry.exporter("compressed-tensors").prepare(made.checkpoint, ExportOptions())
    return publish(planned, tmp_path_factory.mktemp("run") / "int4", report=made.report).path


def exported(source: Path | Checkpoint, out: Path, name: str, kind: str | None = None, arch: str = "native") -> Path:
    checkpoint = source if isinstance(source, Checkpoint) else registry.open_checkpoint(source)
    return publish(registry.exporter(name).prepare(checkpoint, ExportOptions(type=kind, arch=arch)), out).path


def shifted(model: Checkpoint, name: str, share: float) -> Checkpoint:
    """Some codes of a tensor are off by two."""
    view = model.weights[name]
    assert isinstance(view, QuantizedView)
    tensor = view.read()
    chosen = np.random.default_rng(0).random(tensor.codes.shape) < share
    codes = np.where(chosen, np.where(tensor.codes > 7, tensor.codes - 2, tensor.codes + 2), tensor.codes)
    wrong = replace(tensor, codes=codes.astype(np.uint8))
    return replace(model, weights={**model.weights, name: replace(view, read=lambda: wrong)})


def failed_step(artifact: Path, **options: object) -> str:
    report = verify(artifact, engine="none", **options)
    assert report.failed is not None, report.lines()
    return report.failed.name


@pytest.mark.parametrize("arch", ["native", "llama"])
@pytest.mark.parametrize("container", ["gguf:q4_0", "gguf:q8_0", "gptq", "hf:bf16"])
def test_an_export_proves_that_it_holds_the_numbers_of_its_parent(run, golden, tmp_path, container, arch):
    name, _, kind = container.partition(":")
    artifact = exported(run, tmp_path / "out", name, kind or None, arch)
    report = verify(artifact, against=run, engine="none")
    assert report.passed, report.lines()
    assert report.compared == "parent"
    report = verify(artifact, golden=golden, against=run, engine="none")
    assert report.passed, report.lines()
    assert report.compared == "original"


@pytest.mark.parametrize("name", ["gguf", "gptq"])
def test_shifted_codes_are_not_the_parents(run, golden, tmp_path, name):
    wrong = shifted(registry.open_checkpoint(run), "model.layers.1.mlp.up_proj.weight", 0.02)
    artifact = exported(wrong, tmp_path / "out", name)
    report = verify(artifact, against=run, engine="none")
    assert report.failed is not None
    assert report.failed.name == "numbers"
    assert "2" in report.failed.says
    assert "model.layers.1.mlp.up_proj.weight" in report.failed.says
    assert failed_step(artifact, golden=golden, against=run) == "numbers"


def test_codes_that_were_changed_afterwards_are_not_the_manifests(run, golden, tmp_path):
    artifact = exported(run, tmp_path / "out.gguf", "gguf", "q4_0")
    data = bytearray(artifact.read_bytes())
    for place in range(len(data) - 200_000, len(data), 997):
        data[place] ^= 0x11
    artifact.write_bytes(data)
    assert failed_step(artifact, golden=golden) == "files"
    assert failed_step(signed(artifact), golden=golden) == "numbers"


def test_a_vocabulary_that_was_rotated_is_another(golden_model, golden, tmp_path):
    model = registry.open_checkpoint(golden_model)
    vocabulary = read_vocabulary(model)
    order = [*range(300), *np.roll(np.arange(300, 2000), 1), *range(2000, 2048)]
    rotated = replace(
        vocabulary,
        tokens=tuple(vocabulary.tokens[i] for i in order),
        kinds=tuple(vocabulary.kinds[i] for i in order),
        scores=tuple(vocabulary.scores[i] for i in order),
    )
    files = {name: (lambda data=data: data) for name, data in vocabulary_files(rotated).items()}
    others = {name: read for name, read in model.files.items() if name != "tokenizer.json"}  # it would contradict
    artifact = exported(replace(model, files={**others, **files}), tmp_path / "out.gguf", "gguf", "f16")
    report = verify(artifact, golden=golden, engine="none")
    assert report.failed is not None
    assert report.failed.name == "identity"
    assert "vocabulary" in report.failed.says


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("tokenizer_config.json", "im_start", "im_begin"),
        ("tokenizer_config.json", '"eos_token": "<|im_end|>"', '"eos_token": "</s>"'),
        ("tokenizer.json", '"prepend": "▁"', '"prepend": "a"'),
        ("tokenizer.json", '"ids"', '"idz"'),
        ("generation_config.json", "2040", "2041"),
        ("config.json", '"rms_norm_eps": 1e-05', '"rms_norm_eps": 1e-06'),
        ("config.json", '"bos_token_id": 1', '"bos_token_id": 5'),
    ],
)
def test_a_file_that_says_something_else_is_noticed_though_it_is_signed(
    run: Path, golden: Golden, tmp_path: Path, *, file: str, old: str, new: str
) -> None:
    artifact = Path(shutil.copytree(run, tmp_path / "copy"))
    text = (artifact / file).read_text(encoding="utf-8")
    assert old in text
    (artifact / file).write_text(text.replace(old, new))
    assert failed_step(signed(artifact), golden=golden) == "identity"


def test_a_model_proves_nothing_about_itself(golden_model, run, tmp_path):
    prompts = default_prompts(open_tokenizer(registry.open_checkpoint(golden_model)), max_tokens=20)[:2]
    own = recorded(registry.open_checkpoint(run), prompts)
    artifact = exported(run, tmp_path / "out.gguf", "gguf", "q4_0")
    assert failed_step(run, golden=own) == "identity"
    assert failed_step(artifact, golden=own) == "identity"
    assert failed_step(run, against=run) == "identity"
    copy = Path(shutil.copytree(run, tmp_path / "copy", copy_function=os.link))
    assert failed_step(copy, against=run) == "identity"
    assert failed_step(golden_model, against=golden_model, needs_manifest=False) == "identity"


def test_what_was_dequantized_is_no_original_either(golden_model, run, tmp_path):
    dense = exported(run, tmp_path / "dense", "hf", "f32")
    prompts = default_prompts(open_tokenizer(registry.open_checkpoint(golden_model)), max_tokens=20)[:2]
    assert recorded(registry.open_checkpoint(dense), prompts).quantized
    shutil.copytree(dense, tmp_path / "stranger", ignore=shutil.ignore_patterns("quantkit.json"))
    own = recorded(registry.open_checkpoint(tmp_path / "stranger"), prompts)
    assert not own.quantized
    assert failed_step(run, golden=own) == "numbers"


def test_the_dense_original_may_be_checked_by_its_own_golden_file(golden_model, golden):
    report = verify(golden_model, golden=golden, engine="reference", needs_manifest=False, prompts=1)
    assert report.passed, report.lines()
    assert any("proves the engine, not a conversion" in note for note in report.notes)


def test_an_artifact_without_a_manifest_fails_unless_told(run, golden, tmp_path):
    artifact = exported(run, tmp_path / "out.gguf", "gguf", "q4_0")
    manifest_path(artifact).unlink()
    report = verify(artifact, golden=golden, engine="none")
    assert report.failed is not None
    assert report.failed.name == "files"
    assert "--no-manifest" in report.failed.says
    assert verify(artifact, golden=golden, engine="none", needs_manifest=False).passed


def test_without_a_manifest_the_grid_bounds_the_error(run, golden, tmp_path):
    wrong = shifted(registry.open_checkpoint(run), "model.layers.1.mlp.up_proj.weight", 0.5)
    artifact = exported(wrong, tmp_path / "out.gguf", "gguf")
    manifest_path(artifact).unlink()
    assert failed_step(artifact, golden=golden, needs_manifest=False) == "numbers"


def test_the_command_line_says_what_was_proved(golden_model, run, tmp_path, capsys):
    artifact = exported(run, tmp_path / "out.gguf", "gguf", "q4_0")
    golden = str(golden_model.parent / "golden.bin")
    assert main(["verify", str(artifact), "--golden", golden, "--engine", "none", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["verdict"], report["engine"], report["failed"]) == (
        "files and numbers verified, not run in any engine",
        None,
        None,
    )
    assert main(["verify", str(run), "--against", str(run), "--engine", "none"]) == 1
    assert "a model proves nothing about itself" in capsys.readouterr().out
    assert main(["golden", str(run), "--out", str(tmp_path / "golden.bin")]) == 2
    assert "is quantized" in capsys.readouterr().err
    with pytest.raises(BadOption, match="does not exist"):
        verify(tmp_path / "nothing")


def test_no_manifest_is_read_twice(run, tmp_path, monkeypatch):
    artifact = exported(run, tmp_path / "int4.gguf", "gguf")
    read, paths = manifests.read_member_json, []

    def noted(folder: Path, name: str, **limits: int) -> dict[str, Any]:
        paths.append(folder / name)
        return read(folder, name, **limits)

    monkeypatch.setattr(manifests, "read_member_json", noted)
    assert verify(artifact, against=run, engine="none").passed
    assert sorted(paths) == sorted(set(paths))
    assert manifest_path(artifact) in paths
