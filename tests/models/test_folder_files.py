"""The small files of a model folder: which travel, which stay behind and are named, and which are refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from quantkit import registry
from quantkit.errors import MAX_MESSAGE, UnsafePath, UnsupportedModel
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.folder import open_folder
from tests.support.malformed_folders import FIRST, INDEX, SECOND, replace_tensors, write_small_checkpoint


def opened(path: Path) -> Checkpoint:
    """As the command line opens it."""
    return registry.exporter("hf").read(path)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_small_checkpoint(tmp_path / "model")


LEGAL = ["COPYING.rst", "LICENSE", "LICENSE-MiniCPM", "License.txt", "NOTICE.md", "licence"]


def test_small_files_travel_and_code_does_not(small: Path) -> None:
    kept = ["added_tokens.json", "chat_template.jinja", "generation_config.json", "special_tokens_map.json"]
    kept += ["tokenizer.json", "tokenizer.model", "tokenizer_config.json"]
    kept = [*LEGAL, "README.md", *kept]
    left = ["NOTES.md", "modeling_minicpm.py", "tokenizer.py", "tokenization_minicpm.py", "tokenizer.pkl"]
    left += ["pytorch_model.bin", "training_args.bin"]
    for name in kept + left:
        (small / name).write_bytes(name.encode())
    folder = open_folder(small)
    assert sorted(folder.files) == sorted(kept)
    assert {name: read() for name, read in folder.files.items()} == {name: name.encode() for name in kept}
    programs = ("modeling_minicpm.py", "tokenization_minicpm.py", "tokenizer.py")
    pickles = ("pytorch_model.bin", "tokenizer.pkl", "training_args.bin")
    unread = [(name, "code") for name in programs] + [(name, "a pickle") for name in pickles]
    shown = ", ".join(f"{name} ({kind}, never read)" for name, kind in sorted(unread))
    assert f"left behind: NOTES.md, {shown}" in folder.notes


LEFT_BEHIND = [
    "preprocessor_config.json",
    "processor_config.json",
    "quant_strategy.yaml",
    "licenses.json",
    "LICENSE.pdf",
    "NOTICE.html",
    "configuration.json",
    "NOTES.md",
    "MODEL_CARD",
    "vocab.json",
    "merges.txt",
    "consolidated.safetensors.index.json",
    "tokenization.md",
]


@pytest.mark.parametrize("name", LEFT_BEHIND)
def test_a_file_that_stays_behind_is_named(name: str, small: Path) -> None:
    (small / name).write_text("{}")
    (small / ".gitattributes").write_text("*")
    assert f"left behind: {name}" in opened(small).notes


def test_a_folder_that_stays_behind_is_named_and_many_files_in_one_line(small: Path) -> None:
    (small / "onnx").mkdir()
    for number in range(12):
        (small / f"a{number:02}.md").write_text("")
    note = next(note for note in opened(small).notes if note.startswith("left behind"))
    assert note == "left behind: " + ", ".join(f"a{number:02}.md" for number in range(12)) + ", onnx"


def test_a_note_of_thousands_of_files_ends_somewhere(small: Path) -> None:
    for number in range(999):
        (small / f"{number:03}.md").write_text("")
    note = next(note for note in opened(small).notes if note.startswith("left behind"))
    named = note.removeprefix("left behind: ").partition(" and ")[0].split(", ")
    assert named == [f"{number:03}.md" for number in range(len(named))]
    assert note.endswith(f" and {999 - len(named)} more")
    assert MAX_MESSAGE - 100 < len(note) <= MAX_MESSAGE


ADAPTERS = {
    "beside the weights": (FIRST, ("adapter_config.json", "adapter_model.safetensors")),
    "as a pickle": (FIRST, ("adapter_config.json", "adapter_model.bin")),
    "its config alone": (FIRST, ("adapter_config.json",)),
    "in place of the weights": ("", ("adapter_config.json", "adapter_model.safetensors")),
    "its weights alone": (FIRST, ("adapter_model.safetensors",)),
}


@pytest.mark.parametrize("case", ADAPTERS)
def test_an_adapter_is_refused_by_name(case: str, small: Path) -> None:
    kept, names = ADAPTERS[case]
    if not kept:
        for name in (FIRST, SECOND, INDEX):
            (small / name).unlink()
    for name in names:
        if name.endswith(".safetensors"):
            save_file({"base_model.lora_A.weight": np.zeros(3, np.float32)}, small / name)
        else:
            (small / name).write_text("{}")
    with pytest.raises(UnsupportedModel, match=names[0]) as caught:
        opened(small)
    assert "merge" in str(caught.value.hint)


ADAPTER_TENSORS = [
    "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
    "base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight",
    "model.layers.0.self_attn.q_proj.base_layer.weight",
    "model.layers.0.self_attn.q_proj.lora_magnitude_vector.weight",
    "base_model.model.lm_head.modules_to_save.default.weight",
    "lycoris.layers.0.hada_w1_a.weight",
]


@pytest.mark.parametrize("name", ADAPTER_TENSORS)
@pytest.mark.parametrize("alone", [True, False])
def test_an_adapter_under_the_name_of_weights_is_told_by_its_tensors(name: str, alone: bool, small: Path) -> None:
    values = {name: np.zeros((4, 4), np.float32)}
    replace_tensors(small, lambda tensors: (tensors.clear() if alone else None, tensors.update(values)))
    with pytest.raises(UnsupportedModel, match=re.escape(name)) as caught:
        opened(small)
    assert "adapter" in str(caught.value)
    assert "merge" in str(caught.value.hint)


def test_templates_of_the_sub_folder_travel(small: Path) -> None:
    (small / "additional_chat_templates").mkdir()
    (small / "additional_chat_templates" / "tool_use.jinja").write_text("{{ 'b' }}")
    (small / "additional_chat_templates" / "notes.txt").write_text("")
    (small / "chat_template.jinja").write_text("{{ 'a' }}")
    assert "additional_chat_templates/tool_use.jinja" in open_folder(small).files
    assert "left behind: additional_chat_templates/notes.txt" in open_folder(small).notes
    config = json.loads(opened(small).files["tokenizer_config.json"]())
    assert [entry["template"] for entry in config["chat_template"]] == ["{{ 'a' }}", "{{ 'b' }}"]
    assert "chat_template.jinja" not in opened(small).files


def test_a_sub_folder_of_templates_that_leads_elsewhere_is_refused(small: Path) -> None:
    (small.parent / "elsewhere").mkdir()
    (small.parent / "elsewhere" / "tool_use.jinja").write_text("secret")
    (small / "additional_chat_templates").symlink_to("../elsewhere")
    with pytest.raises(UnsafePath, match="additional_chat_templates"):
        opened(small)


def test_a_small_file_that_links_out_of_the_folder_is_refused(small: Path) -> None:
    (small.parent / "secret.json").write_text("{}")
    (small / "tokenizer.json").symlink_to("../secret.json")
    with pytest.raises(UnsafePath, match=r"tokenizer\.json"):
        opened(small)
