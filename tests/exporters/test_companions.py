"""What goes with a model beside its weights: every container carries it, or names what it leaves behind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.files.planned_files import PlannedArtifact
from quantkit.models.checkpoint import Checkpoint
from quantkit.protocols import ExportOptions
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.text.companions import with_companions
from quantkit.text.vocabulary import read_vocabulary
from quantkit.verification.steps.identity import text_differences, text_facts
from tests.support.memory import tiny_config
from tests.support.quantized_models import linears, one_scale_each, quantized_model
from tests.support.tokenizer_folders import IM_END, Files, changed, config_with, golden_files

CONFIG = tiny_config(
    vocab_size=2048, hidden_size=256, intermediate_size=512, num_hidden_layers=1, num_key_value_heads=4,
    bos_token_id=1, eos_token_id=[2, IM_END],
)  # fmt: skip
FACTORS = [1.0] * 32
LONGROPE = {
    "rope_type": "longrope", "short_factor": FACTORS, "long_factor": FACTORS, "original_max_position_embeddings": 64,
}  # fmt: skip
"""The marlin kernels of cpm.cu ask for it."""
GENERATION = {"do_sample": True, "temperature": 0.7, "top_p": 0.95, "top_k": 40, "eos_token_id": [2, IM_END]}
TOLD = ("LICENSE", "NOTICE.txt", "COPYING")
TEMPLATES: dict[str, Files] = {
    "chat_template.json": {"chat_template.json": json.dumps({"chat_template": "{{ 'old' }}"}).encode()},
    "chat_template.jinja": {"chat_template.jinja": b"{{ 'new' }}"},
    "additional_chat_templates": {
        "chat_template.jinja": b"{{ 'new' }}",
        "additional_chat_templates/tool_use.jinja": b"{{ 'tools' }}",
        "additional_chat_templates/rag.jinja": b"{{ 'rag' }}",
    },
    "named templates": config_with(
        golden_files(), chat_template=[{"name": n, "template": f"{{{{ '{n}' }}}}"} for n in ("default", "tool_use")]
    ),
    "none of them the default": config_with(
        golden_files(), chat_template=[{"name": n, "template": f"{{{{ '{n}' }}}}"} for n in ("chat", "tool_use")]
    ),
}
BARE = config_with(golden_files(), chat_template=None)
CONTAINERS = [
    "awq",
    "bitnet",
    "compressed-tensors",
    "gguf",
    "gptq",
    "hf",
    "marlin@cpm.cu",
    "marlin@ist",
    "mlx",
    "onnx",
    "openvino",
]


def model(files: Mapping[str, bytes], **changes: Any) -> Checkpoint:
    """A ternary model that every container holds, as a reader completes it."""
    grid = linears(AffineGroups(bits=2, group_size=128, ternary=True))
    config = {**CONFIG, "rope_scaling": LONGROPE, **changes}
    return with_companions(one_scale_each(quantized_model(config, grid, files=files)))


def planned(container: str, checkpoint: Checkpoint, arch: str = "native") -> PlannedArtifact:
    name, _, target = container.partition("@")
    kind = "q4_0" if name == "gguf" else None  # a type that the package gguf knows
    return registry.exporter(name).prepare(checkpoint, ExportOptions(type=kind, target=target or None, arch=arch))


def content(artifact: PlannedArtifact, name: str) -> bytes:
    file = next(file for file in artifact.files if file.name == name)
    return b"".join(bytes(buffer) for unit in file.units for buffer in unit.produce())


def test_the_containers_are_all_those_there_are() -> None:
    assert {name.partition("@")[0] for name in CONTAINERS} == set(registry.names("exporters"))


@pytest.mark.parametrize("case", TEMPLATES)
@pytest.mark.parametrize("container", CONTAINERS)
def test_everything_beside_the_weights_is_carried_or_named(container: str, case: str, tmp_path: Path) -> None:
    legal = {name: f"{name} of the model\n".encode() for name in TOLD}
    generation = {"generation_config.json": json.dumps({**GENERATION, "max_new_tokens": 9}).encode()}
    checkpoint = model({**BARE, **TEMPLATES[case], **legal, **generation})
    artifact = planned(container, checkpoint)
    vocabulary = read_vocabulary(checkpoint)
    out = tmp_path / ("model.gguf" if container == "gguf" else "model-int4")
    publish(artifact, out)
    back = registry.exporter(artifact.format).read(out)
    found = read_vocabulary(back)
    assert (found.chat_template, found.named_templates) == (vocabulary.chat_template, vocabulary.named_templates)
    assert json.loads(back.files["generation_config.json"]()) == {**GENERATION, "max_new_tokens": 9}
    assert list(text_differences(text_facts(checkpoint), text_facts(back))) == []
    if container == "gguf":
        assert any(note.endswith(", ".join(sorted(TOLD))) and "left behind" in note for note in artifact.notes)
        assert any("no notice of max_new_tokens" in note for note in artifact.notes)
    else:
        assert {name: back.files[name]() for name in TOLD} == legal
        assert set(checkpoint.files) <= set(back.files)


NOTHING_ENDS = config_with(BARE, eos_token=None, bos_token=None)
NOTHING_ENDS = changed(NOTHING_ENDS, "special_tokens_map.json", dict.clear)
ENDS: dict[str, tuple[Any, Any, Files, tuple[int, ...]]] = {
    # eos_token_id of config.json, of generation_config.json ("" = no file), the other files, the union
    "one": (2, "", NOTHING_ENDS, (2,)),
    "a list of one": ([2], "", NOTHING_ENDS, (2,)),
    "null, and the file names two": (None, [2, 7], NOTHING_ENDS, (2, 7)),
    "null, and the tokenizer names one": (None, "", BARE, (IM_END,)),
    "an empty list": ([], [7], NOTHING_ENDS, (7,)),
    "minus one": (-1, 7, NOTHING_ENDS, (7,)),
    "minus one among others": ([2, -1], [-1, 7], NOTHING_ENDS, (2, 7)),
    "twice the same": ([2, 2, 7], [7, 7, 2], NOTHING_ENDS, (2, 7)),
    "none anywhere": (None, None, NOTHING_ENDS, ()),
    "none, in other words": ([], -1, NOTHING_ENDS, ()),
}


@pytest.mark.parametrize("arch", ["native", "llama"])
@pytest.mark.parametrize("case", ENDS)
def test_every_folder_names_every_end_token_once(case: str, arch: str) -> None:
    eos, generation, files, union = ENDS[case]
    beside = {} if generation == "" else {"generation_config.json": json.dumps({"eos_token_id": generation}).encode()}
    checkpoint = model({**files, **beside}, eos_token_id=eos) if eos is not None else nothing({**files, **beside})
    assert checkpoint.spec.eos_token_ids == union
    said = list(union) if len(union) > 1 else union[0] if union else None
    for container in [name for name in CONTAINERS if name != "gguf"]:
        if arch == "llama" and container.startswith("marlin"):
            continue  # folding needs another grid there
        artifact = planned(container, checkpoint, arch)
        config = json.loads(content(artifact, "config.json"))
        assert config["eos_token_id"] in (said, list(union))
        if beside and union:
            ids = json.loads(content(artifact, "generation_config.json"))["eos_token_id"]
            assert set(ids if isinstance(ids, list) else [ids]) == set(union)


def nothing(files: Mapping[str, bytes]) -> Checkpoint:
    """A model whose config.json says `"eos_token_id": null`; `tiny_config` would drop the key."""
    return model(files, eos_token_id=None)


@pytest.mark.parametrize("value", [None, -1, []])
@pytest.mark.parametrize("container", CONTAINERS)
def test_no_first_token_is_none_everywhere(container: str, value: Any, tmp_path: Path) -> None:
    artifact = planned(container, model(NOTHING_ENDS, bos_token_id=value))
    out = tmp_path / ("model.gguf" if container == "gguf" else "model-int4")
    publish(artifact, out)
    back = registry.exporter(artifact.format).read(out)
    assert back.spec.bos_token_id is None
    vocabulary = read_vocabulary(back)
    assert (vocabulary.bos_token_id, vocabulary.add_bos) == (None, False)
    assert back.config["bos_token_id"] in (None, [])
    if container == "gguf":
        import gguf  # noqa: PLC0415 - the reader of others

        fields = gguf.GGUFReader(out).fields
        assert "tokenizer.ggml.bos_token_id" not in fields
        assert fields["tokenizer.ggml.add_bos_token"].contents() is False  # or llama.cpp would begin with token 1
