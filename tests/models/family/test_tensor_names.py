"""Names under another prefix: mapped when that is the only reading, refused with the true reason otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.errors import IncompleteCheckpoint, InconsistentCheckpoint, QuantkitError
from quantkit.models.checkpoint import Checkpoint
from quantkit.protocols import ExportOptions
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView, Weight
from quantkit.verification.engines import real_engine
from quantkit.verification.witness import agreement
from tests.support.runs import quantized
from tests.support.tiny import tiny_config, tiny_tensors, write_tensors

Tensors = dict[str, np.ndarray]
TABLE = "model.layers.0.self_attn.rotary_emb.inv_freq"


def written(folder: Path, tensors: Tensors, *, tie: bool = True, shards: int = 1, **keys: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**tiny_config(hidden=64, intermediate=64, tie=tie), **keys}))
    write_tensors(folder, tensors, shards=shards)
    return folder


def weights(*, tie: bool = True) -> Tensors:
    return tiny_tensors(tiny_config(hidden=64, intermediate=64, tie=tie))


def renamed(rename: Callable[[str], str], *, tie: bool = True) -> Tensors:
    return {rename(name): tensor for name, tensor in weights(tie=tie).items()}


def in_layers(part: str) -> Callable[[str], str]:
    """Names with `part` behind every layer's number."""

    def rename(name: str) -> str:
        words = name.split(".")
        return ".".join([*words[:3], part, *words[3:]]) if words[1] == "layers" else name

    return rename


def checked(folder: Path, expected: Tensors) -> Checkpoint:
    checkpoint = registry.open_checkpoint(folder)
    assert list(checkpoint.weights) == [slot.name for slot in checkpoint.spec.slots()]
    for name, view in checkpoint.weights.items():
        assert view.name == name
        assert view.read().tobytes() == expected[name].tobytes()
    return checkpoint


PREFIXES = {
    "peft": lambda name: f"base_model.model.{name}",
    "compiled": lambda name: f"_orig_mod.{name}",
    "data parallel": lambda name: f"module.{name}",
    "compiled data parallel": lambda name: f"_orig_mod.module.{name}",
    "compiled PEFT": lambda name: f"base_model.model._orig_mod.{name}",
    "lightning": lambda name: f"_forward_module.model.{name}",
    "sharded": lambda name: f"_fsdp_wrapped_module.{name}",
    "text model": lambda name: f"llm.{name}",
    "language model": lambda name: f"language_model.{name}",
    "language model within": lambda name: name if name == "lm_head.weight" else f"model.language_{name}",
    "a compiled layer": in_layers("_orig_mod"),
    "a checkpointed layer": in_layers("_checkpoint_wrapped_module"),
    "a name of one's own": lambda name: f"student.net.{name}",
}


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", PREFIXES)
def test_a_complete_model_under_a_prefix_is_read_and_said(kind: str, tie: bool, tmp_path: Path) -> None:
    checkpoint = checked(written(tmp_path / "m", renamed(PREFIXES[kind], tie=tie), tie=tie), weights(tie=tie))
    (note,) = (note for note in checkpoint.notes if "without their prefix" in note)
    assert " is 'model." in note or " is 'lm_head." in note


def test_the_decoder_alone_is_the_model_where_embeddings_are_tied(tmp_path: Path) -> None:
    tensors = renamed(lambda name: name.removeprefix("model."))
    checkpoint = checked(written(tmp_path / "m", tensors, shards=2), weights())
    assert any("'embed_tokens.weight' is 'model.embed_tokens.weight'" in note for note in checkpoint.notes)


def test_what_is_written_has_the_model_s_own_names(tmp_path: Path) -> None:
    source = registry.open_checkpoint(written(tmp_path / "m", renamed(PREFIXES["peft"])))
    out = publish(registry.exporter("hf").prepare(source, ExportOptions()), tmp_path / "out").path
    assert not any("prefix" in note for note in checked(out, weights()).notes)


def test_tables_and_the_copy_of_a_tied_head_are_handled_as_under_own_names(tmp_path: Path) -> None:
    tensors = renamed(PREFIXES["compiled"])
    tensors[f"_orig_mod.{TABLE}"] = tensors["_orig_mod.model.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    tensors["_orig_mod.lm_head.weight"] = tensors["_orig_mod.model.embed_tokens.weight"]
    checked(written(tmp_path / "m", tensors), weights())
    tensors["_orig_mod.lm_head.weight"] = np.ones_like(tensors["_orig_mod.lm_head.weight"])
    with pytest.raises(InconsistentCheckpoint, match=r"'lm_head.weight' differs"):
        registry.open_checkpoint(written(tmp_path / "n", tensors))


def test_own_names_are_told_nothing(tmp_path: Path) -> None:
    checkpoint = checked(written(tmp_path / "m", weights() | {TABLE: np.ones(8, np.float32)}), weights())
    assert not any("prefix" in note for note in checkpoint.notes)


@pytest.mark.parametrize("container", ["gptq", "awq", "compressed-tensors"])
def test_quantized_weights_under_a_prefix_are_put_together(container: str, tmp_path: Path) -> None:
    source = registry.open_checkpoint(written(tmp_path / "m", weights()))
    run = quantized(source, AffineGroups(bits=4, group_size=32), "rtn")
    folder = publish(registry.exporter(container).prepare(run.checkpoint, ExportOptions()), tmp_path / "q").path

    def values(view: Weight) -> bytes:
        tensor = view.read()
        return (tensor.dequantized() if isinstance(view, QuantizedView) else tensor).tobytes()

    before = {name: values(view) for name, view in registry.open_checkpoint(folder).weights.items()}
    tensors = load_file(folder / "model.safetensors")
    write_tensors(folder, {f"_orig_mod.{name}": tensor for name, tensor in tensors.items()})
    after = registry.open_checkpoint(folder)
    assert {name: values(view) for name, view in after.weights.items()} == before
    assert any(isinstance(view, QuantizedView) for view in after.weights.values())


# ------------------------------------------------------------------------------------------------------- refusals


def lacking(name: str) -> Tensors:
    return {key: tensor for key, tensor in renamed(PREFIXES["peft"]).items() if not key.endswith(name)}


def half() -> Tensors:
    return {(f"module.{n}" if ".layers.1." in n else n): t for n, t in weights().items()}


def twice(prefix: str) -> Tensors:
    return weights() | {f"{prefix}.{name}": tensor for name, tensor in weights().items()}


def lacking_layer() -> Tensors:
    return {key: tensor for key, tensor in renamed(PREFIXES["data parallel"]).items() if ".layers.1." not in key}


def weights_of_decoder() -> Tensors:
    return {n.removeprefix("model."): t for n, t in weights(tie=False).items() if n != "lm_head.weight"}


def doubled(name: str) -> Tensors:
    return {f"module.{name}": weights()[name]}


REFUSED: dict[str, tuple[Callable[[], Tensors], type[QuantkitError], tuple[str, ...]]] = {
    "a tensor is missing": (
        lambda: lacking("layers.1.mlp.up_proj.weight"),
        IncompleteCheckpoint,
        ("'base_model.model.'", "model.layers.1.mlp.up_proj"),
    ),
    "a layer is missing": (lacking_layer, IncompleteCheckpoint, ("9 of the model's tensors",)),
    "the head is missing": (weights_of_decoder, IncompleteCheckpoint, ("lm_head", "no prefix")),
    "two kinds of names": (
        lambda: {(f"base_model.{n}" if ".1." in n else n): t for n, t in weights().items()},
        IncompleteCheckpoint,
        ("2 prefixes", "under none is the whole model"),
    ),
    "the model and its average": (lambda: twice("ema"), InconsistentCheckpoint, ("2 times", "'ema.'")),
    "under two prefixes": (
        lambda: renamed(PREFIXES["peft"]) | renamed(lambda name: f"teacher.{name}"),
        InconsistentCheckpoint,
        ("2 times", "'base_model.model.'", "'teacher.'"),
    ),
    "compiled and not": (lambda: twice("_orig_mod"), InconsistentCheckpoint, ("'_orig_mod.model.", "are both")),
    "half of it wrapped": (
        lambda: half() | {"model.norm.weight": weights()["model.norm.weight"], **doubled("model.norm.weight")},
        InconsistentCheckpoint,
        ("'module.model.norm.weight'", "are both"),
    ),
    "something else beside": (
        lambda: renamed(PREFIXES["compiled"]) | {"value_head.weight": np.ones((4, 4), np.float32)},
        InconsistentCheckpoint,
        ("value_head.weight",),
    ),
    "an adapter beside": (
        lambda: (
            renamed(PREFIXES["peft"])
            | {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": np.ones((8, 64), np.float32)}
        ),
        QuantkitError,
        ("lora_A",),
    ),
    "an adapter around a layer": (
        lambda: renamed(lambda name: name.replace("q_proj.", "q_proj.base_layer.")),
        QuantkitError,
        ("q_proj",),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_any_other_reading_is_refused_by_its_reason(case: str, tmp_path: Path) -> None:
    make, error, words = REFUSED[case]
    folder = written(tmp_path / "m", make(), tie=case != "the head is missing")
    with pytest.raises(error) as caught:
        registry.open_checkpoint(folder)
    assert type(caught.value) is error or error is QuantkitError
    for word in (str(folder), *words):
        assert word in str(caught.value)
    assert caught.value.hint


def test_a_tower_with_layers_of_its_own_is_no_second_model(tmp_path: Path) -> None:
    towers = {f"{tower}.layers.0.norm.weight": np.ones(4, np.float32) for tower in ("tts.model", "apm", "vpm.encoder")}
    tensors = renamed(PREFIXES["text model"], tie=False) | towers
    folder = written(tmp_path / "m", tensors, tie=False, architectures=["MiniCPMO"], model_type="minicpmo")
    notes = checked(folder, weights(tie=False)).notes
    assert any("3 other tensors are left aside" in note and "tts." in note and "apm." in note for note in notes)


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_engines_that_read_folders_by_themselves_are_told_off(engine: str, tmp_path: Path) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": True}
    own = registry.open_checkpoint(written(tmp_path / "own", weights(), **config))
    other = registry.open_checkpoint(written(tmp_path / "other", renamed(PREFIXES["compiled"]), **config))
    assert (own.renamed, other.renamed) == (False, True)
    assert registry.runtime(engine).refuses(own) is None
    assert "export hf" in (registry.runtime(engine).refuses(other) or "")
    assert real_engine(other) is None
    with (
        registry.runtime("reference").open(tmp_path / "own") as ours,
        registry.runtime("reference").open(other.path) as it,
    ):
        np.testing.assert_array_equal(ours.logits([1, 2, 3]), it.logits([1, 2, 3]))
    assert "no second witness" in (agreement(other, [], []) or "")
