"""`inspect` says which member of the family a model is; one that is not taken is refused by its own name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.make_checkpoint import config as published
from quantkit import inspection, registry
from quantkit.artifacts.publishing import publish
from quantkit.errors import UnsupportedModel
from quantkit.models.family.members import MEMBERS, Member
from quantkit.models.family.recognition import UNKNOWN, described, refused_member
from quantkit.models.recognition import parse_config
from quantkit.protocols import ExportOptions
from tests.support.family import CONFIGS, write_member
from tests.support.tiny import tiny_config, write_tiny_checkpoint

TAKEN = [member for member in MEMBERS if member.refused is None and member.limited is None]
REFUSED = [member for member in MEMBERS if member.refused is not None]
CLASSES = {"minicpm": "MiniCPMForCausalLM", "llama": "LlamaForCausalLM"}


def config_of(member: Member, **keys: Any) -> dict[str, Any]:
    """A config.json with the member's facts."""
    shape = member.shape
    scalars = {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256} if member.architecture == "minicpm" else {}
    return {
        "architectures": [CLASSES.get(member.architecture, member.architecture)],
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": member.vocabulary,
        "max_position_embeddings": member.contexts[0],
        **scalars,
        **member.marks,
        **keys,
    }


def rows(config: dict[str, Any]) -> int:
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return int(config["num_key_value_heads"] * width)


def said(config: dict[str, Any], architecture: str | None = None) -> str:
    spec = parse_config(config)
    facts = {key: getattr(spec, key) for key in spec.__slots__}
    return described(facts, architecture or spec.architecture)


@pytest.mark.parametrize("member", TAKEN, ids=lambda member: member.name)
def test_every_member_is_called_by_its_name_and_those_that_are_the_same(member: Member) -> None:
    text = said(config_of(member))
    assert text.startswith(member.name)
    assert " or " not in text.replace(" (or ", "")
    assert all(other in text for other in member.also)


@pytest.mark.parametrize("member", TAKEN, ids=lambda member: member.name)
def test_each_member_of_the_family_has_a_tiny_model_of_its_kind(member: Member) -> None:
    tiny, real = CONFIGS[member.name], config_of(member)
    for key in ("hidden_size", "intermediate_size", "vocab_size"):
        for step in (2, 8, 16, 32, 128, 256):
            if (key, step) != ("hidden_size", 256) or member.shape.heads != 36:
                assert (tiny[key] % step == 0) == (real[key] % step == 0), (key, step)
    assert member.shape.heads == 36 or rows(tiny) % 256 == rows(real) % 256, "of keys and values"
    if "dim_model_base" in real:
        assert tiny["hidden_size"] / tiny["dim_model_base"] == real["hidden_size"] / real["dim_model_base"]
    wide = member.shape.head_dim * member.shape.heads != member.shape.hidden
    width = tiny.get("head_dim") or tiny["hidden_size"] // tiny["num_attention_heads"]
    assert (width * tiny["num_attention_heads"] != tiny["hidden_size"]) == wide


@pytest.mark.parametrize("member", REFUSED, ids=lambda member: member.name)
def test_a_member_that_is_not_taken_is_refused_by_its_name_with_the_reason(member: Member) -> None:
    config = config_of(member)
    assert refused_member(config) is member
    with pytest.raises(UnsupportedModel) as caught:
        parse_config(config)
    assert f"this is {member.name}: {member.refused}" in str(caught.value)


def test_a_model_is_refused_without_a_name_that_it_has_not() -> None:
    with pytest.raises(UnsupportedModel) as caught:
        parse_config({**tiny_config(), "attention_bias": True})
    assert "this is" not in str(caught.value)
    assert refused_member({"architectures": "MiniCPMForCausalLM", "num_experts": 8}) is None
    assert refused_member({"architectures": [8], "num_experts": 8}) is None


def by_name(name: str) -> dict[str, Any]:
    return config_of(next(member for member in MEMBERS if member.name == name))


VARIANTS = {
    "more words": ({**by_name("MiniCPM4-8B"), "vocab_size": 73456}, "the shape of MiniCPM4-8B", "73,456"),
    "longer": ({**by_name("MiniCPM4-0.5B"), "max_position_embeddings": 131072}, "MiniCPM4-0.5B", "context of 131,072"),
    "between two": ({**by_name("MiniCPM4-8B"), "max_position_embeddings": 131072}, "MiniCPM4.1-8B", "131,072"),
    "fewer layers": ({**by_name("MiniCPM5-1B"), "num_hidden_layers": 12}, UNKNOWN, ""),
    "wider heads": ({**by_name("MiniCPM-1B"), "head_dim": 128}, UNKNOWN, ""),
    "the later context": ({**by_name("MiniCPM-2B"), "max_position_embeddings": 4096}, "MiniCPM-2B", ""),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_differs_from_a_member_is_said(variant: str) -> None:
    config, *words = VARIANTS[variant]
    for word in words:
        assert word in said(config)


@pytest.mark.parametrize("shape", ["minicpm4-0.5b", "minicpm4-8b"])
def test_the_config_as_published_is_recognised(shape: str) -> None:
    assert said(published(shape)).lower().startswith(shape)


def test_a_folded_member_is_told_from_one_that_is_a_llama() -> None:
    assert said(by_name("MiniCPM4-8B"), "llama").endswith(", folded into a Llama")
    assert "folded" not in said(by_name("MiniCPM5-1B"))


def test_a_limited_member_is_told_from_those_of_its_shape() -> None:
    facts = {**by_name("MiniCPM4-8B"), "max_position_embeddings": 524288}
    assert described(facts, "sala") == "MiniCPM-SALA"
    assert described({**facts, "max_position_embeddings": 4096}, "sala") == "MiniCPM-SALA, with a context of 4,096"
    assert "SALA" not in described(facts, "minicpm")
    assert "SALA" not in described(facts, "llama")
    assert described({**by_name("MiniCPM4-0.5B")}, "sala") == UNKNOWN


def test_inspect_shows_it_for_folders_and_files(tmp_path: Path) -> None:
    source = registry.open_checkpoint(write_tiny_checkpoint(tmp_path / "m"))
    assert inspection(source).facts["model"] == UNKNOWN
    folder = write_member(tmp_path / "v4", "MiniCPM4-3B")
    file = publish(
        registry.exporter("gguf").prepare(registry.open_checkpoint(folder), ExportOptions()), tmp_path / "m.gguf"
    ).path
    assert next(iter(inspection(registry.open_checkpoint(file)).facts)) == "model"
    json.dumps(inspection(registry.open_checkpoint(file)).to_json())
