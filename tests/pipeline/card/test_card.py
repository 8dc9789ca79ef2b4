"""Model cards: planned to the byte, accepted by the hub's own library, made again from manifest and headers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from gguf import GGUFReader
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard import metadata_load

import quantkit
from quantkit.artifacts.manifest import check_files
from quantkit.cli.app import main
from quantkit.errors import BadOption
from quantkit.pipeline.card.about import About, awaited
from quantkit.pipeline.card.page import Subject, card
from quantkit.pipeline.card.source import about
from tests.support.tiny import write_tiny_checkpoint

SAID = "---\nlicense: apache-2.0\nlanguage:\n- zh\n- en\nextra: [1]\n---\n# The original\n"
CONTAINERS = {
    "compressed-tensors": "transformers",
    "gptq": "transformers",
    "awq": "transformers",
    "hf": "transformers",
    "mlx": "mlx",
    "onnx": "onnx",
    "openvino": "openvino",
}
"""Container to the library that hubs file it under."""


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As it lies in the hub's cache."""
    folder = tmp_path_factory.mktemp("cache") / "models--owner--Some_Model-1B" / "snapshots" / "0123abcd"
    folder.parent.mkdir(parents=True)
    write_tiny_checkpoint(folder, hidden=256, intermediate=512, vocab=512)
    (folder / "README.md").write_text(SAID)
    (folder / "LICENSE").write_text("Apache License\nVersion 2.0, January 2004\n")
    return folder


@pytest.fixture(scope="module")
def quantized(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "int4"
    scheme = quantkit.AffineGroups(bits=4, group_size=128)
    quantkit.quantize(original, out, quantkit.QuantizeOptions(method="rtn", scheme=scheme))
    return out


def manifest(artifact: Path) -> Mapping[str, Any]:
    name = artifact / "quantkit.json" if artifact.is_dir() else artifact.with_name(artifact.name + ".quantkit.json")
    found: Mapping[str, Any] = json.loads(name.read_text())
    return found


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_hubs_library_takes_the_card_of_every_folder(container: str, quantized: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = quantkit.export(container, quantized, out)
    text = (out / "README.md").read_text()
    parsed = ModelCard(text)  # raises where the block is no YAML, or a key has another shape
    assert parsed.text.startswith("\n# Some\\_Model-1B: ")
    data = metadata_load(out / "README.md")
    assert ModelCardData(**data).to_dict() == data
    assert data["base_model"] == "owner/Some_Model-1B"
    assert data["base_model_relation"] == "quantized"
    assert (data["license"], data["language"]) == ("apache-2.0", ["zh", "en"])
    assert (data["library_name"], data["pipeline_tag"]) == (CONTAINERS[container], "text-generation")
    assert {"quantkit", container} <= set(data["tags"])
    assert (out / "LICENSE").read_text().startswith("Apache")
    sizes = {path.name: path.stat().st_size for path in out.iterdir() if path.name != "quantkit.json"}
    assert sum(sizes.values()) == done.size
    assert sizes == {name: entry["size"] for name, entry in manifest(out)["files"].items()}
    assert quantkit.model_card(out) == text


def test_a_single_file_has_a_card_that_is_printed_and_stays_alone(
    quantized: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.gguf"
    quantkit.export("gguf", quantized, out)
    assert {path.name for path in tmp_path.iterdir()} == {"model.gguf", "model.gguf.quantkit.json"}
    assert main(["inspect", str(out), "--card"]) == 0
    printed = capsys.readouterr().out
    assert printed == quantkit.model_card(out)
    assert "llama-cli -m FILE.gguf" in printed
    assert ModelCard(printed).data.base_model == "owner/Some_Model-1B"
    said = {name: found.contents() for name, found in GGUFReader(out).fields.items()}
    assert (said["general.license"], said["general.languages"]) == ("apache-2.0", ["zh", "en"])
    assert {"gguf", "quantkit"} <= set(said["general.tags"])
    assert "compressed-tensors" not in said["general.tags"]
    assert said["general.base_model.0.repo_url"] == "https://huggingface.co/owner/Some_Model-1B"


@pytest.mark.parametrize("target", ["compressed-tensors", "gptq", "gguf:q4_0", "hf:bf16", "mlx", "openvino"])
def test_a_plan_knows_the_size_of_the_card(target: str, original: Path, quantized: Path, tmp_path: Path) -> None:
    scheme = quantkit.AffineGroups(bits=4, group_size=128)
    (planned,) = quantkit.plan(original, [target], quantkit.QuantizeOptions(method="rtn", scheme=scheme)).targets
    name, options = quantkit.parse_target(target)
    assert quantkit.export(name, quantized, tmp_path / "out", options).size == planned.size


def test_its_figures_are_those_of_the_run(quantized: Path, tmp_path: Path) -> None:
    report, told = manifest(quantized)["report"], About.from_json(manifest(quantized)["about"])
    assert told is not None
    errors = [found["error"] for name, found in report["tensors"].items() if ".down_proj." in name]
    assert told.errors["down_proj"] == (median(errors), max(errors))
    page = (quantized / "README.md").read_text()
    assert f"| down_proj | {median(errors):.2e} | {max(errors):.2e} |" in page
    assert list(told.errors) == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert (told.method, told.calibrated, "KL" in page) == ("rtn", False, False)
    exported = quantkit.export("gptq", quantized, tmp_path / "gptq")
    assert About.from_json(exported.manifest["about"]) == told


def test_a_figure_is_as_wide_as_none() -> None:
    """The length of the card is planned before there are figures."""
    awaiting = About(name="x", method="gptq", calibrated=True, errors=awaited(["model.layers.0.mlp.up_proj.weight"]))
    report = {
        "tensors": {"model.layers.0.mlp.up_proj.weight": {"error": 1.25e-12}},
        "calibration": {"sources": [{"kl": 0.5}, {"kl": None}, {"kl": 0.25}]},
    }
    told = awaiting.measured(report)
    assert (told.kl, told.errors) == (0.375, {"up_proj": (1.25e-12, 1.25e-12)})
    model = quantkit.open_checkpoint(Path(__file__).resolve().parents[3] / "golden" / "model")
    pages = [
        card(Subject(about=one, model=model, target=None, folder=True, size=1, version="1")) for one in (awaiting, told)
    ]
    assert len(pages[0]) == len(pages[1])
    assert "3.75e-01 nats" in pages[1]
    assert "       - nats" in pages[0]


def test_a_card_that_somebody_edited_is_told_and_no_failure(original: Path, quantized: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(quantized, copy)
    assert check_files(copy) == []
    (copy / "README.md").write_text("mine")
    assert ["README.md' is truncated" in note and "no engine reads it" in note for note in check_files(copy)] == [True]
    told = quantkit.verify(copy, engine="none", against=original)
    assert [step.status for step in told.steps[:3]] == ["passed"] * 3, "a card is no part of the model's identity"
    (copy / "README.md").unlink()
    assert len(check_files(copy)) == 1
    report = quantkit.verify(copy, engine="none", against=original, golden=None)
    assert [step.status for step in report.steps[:3]] == ["passed"] * 3
    assert any("README.md' is missing" in note for note in report.notes)


def test_an_artifacts_own_card_is_not_left_behind(quantized: Path) -> None:
    assert not any("README" in note for note in quantkit.open_checkpoint(quantized).notes)


def test_without_a_manifest_there_is_nothing_to_make_a_card_of(original: Path) -> None:
    with pytest.raises(BadOption, match="no manifest"):
        quantkit.model_card(original)


def said(folder: Path, card: str = "", legal: str | None = None) -> About:
    write_tiny_checkpoint(folder)
    (folder / "README.md").write_text(card)
    if legal is not None:
        (folder / "LICENSE").write_text(legal)
    return about(quantkit.open_checkpoint(folder))


def test_what_a_folder_says_of_itself(tmp_path: Path) -> None:
    other = "---\nlicense: other\nlicense_name: minicpm\nlicense_link: https://example.org/x\n---\n"
    found = said(tmp_path / "MiniCPM4-0.5B", other)
    assert (found.name, found.base_model) == ("MiniCPM4-0.5B", "openbmb/MiniCPM4-0.5B")
    assert (found.license, found.license_name, found.license_link) == ("other", "minicpm", "https://example.org/x")
    assert said(tmp_path / "a").license is None
    assert (
        said(tmp_path / "b", legal="                Apache License\n   Version 2.0, January 2004").license
        == "apache-2.0"
    )
    assert said(tmp_path / "c", legal="All rights reserved").license is None
    assert said(tmp_path / "Llama-3-8B").base_model is None, "not published by the family's makers"
    odd = said(tmp_path / "<b>|x`", "---\nlicense: '<script>'\nlanguage: [English]\n---\n")
    assert (odd.license, odd.language) == (None, ())


@pytest.mark.parametrize("data", [None, [], {}, {"name": 3}, {"name": ""}])
def test_a_manifest_of_a_stranger_may_say_nothing(data: object) -> None:
    assert About.from_json(data) is None


def test_a_manifest_of_a_stranger_may_say_nonsense() -> None:
    found = About.from_json(
        {"name": "x", "license": 3, "language": "en", "kl": "nan", "trained": True, "errors": [1, {"matrix": "q"}]}
    )
    assert found == About(name="x", errors={"q": (None, None)})
