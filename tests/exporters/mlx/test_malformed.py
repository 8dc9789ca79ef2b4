"""MLX folders that are broken or contradict themselves: one line each, which names what is wrong."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from benchmarks.mutations import json_mutants
from benchmarks.mutations.byte_mutants import damaged_bytes
from quantkit import registry
from quantkit.errors import MAX_MESSAGE, QuantkitError
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView
from tests.support.memory import tiny_config
from tests.support.mlx_folders import exported
from tests.support.quantized_models import linears, quantized_model

CONFIG = tiny_config(
    architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=64, hidden_size=64, intermediate_size=64,
    num_hidden_layers=1, tie_word_embeddings=False,
)  # fmt: skip
UP = "model.layers.0.mlp.up_proj"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return exported(quantized_model(CONFIG, linears(AffineGroups(bits=4, group_size=32))), tmp_path / "model")


def settings_changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config["quantization"])
    config["quantization_config"] = config["quantization"]
    (folder / "config.json").write_text(json.dumps(config))


def tensors_changed(folder: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "mlx"})


SETTINGS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no bits": (lambda s: s.pop("bits"), "bits and group_size as integers"),
    "bits as text": (lambda s: s.update(bits="4"), "as integers"),
    "true for bits": (lambda s: s.update(bits=True), "as integers"),
    "bits of another time": (lambda s: s.update(bits=7), "7 bits in groups of 32"),
    "groups of another time": (lambda s: s.update(group_size=16), "groups of 16"),
    "a mode of another time": (lambda s: s.update(mode="mxfp8", bits=8), "mode 'mxfp8'"),
    "a mode with other bits": (lambda s: s.update(mode="mxfp4", bits=8), "mode 'mxfp4'"),
    "a mode that is no name": (lambda s: s.update(mode=["affine"]), "mode as a name"),
    "a key of another time": (lambda s: s.update(zero_bits=3), "zero_bits"),
    "a setting of another time": (lambda s: s.update({UP: {"bits": 4, "group_size": 32, "order": 1}}), "'order'"),
    "a module that is not there": (lambda s: s.update({"model.layers.9": True}), "does not have"),
    "a module with other bits": (lambda s: s.update({UP: {"bits": 8, "group_size": 32}}), "up_proj.weight is uint32"),
    "a module that should be dense": (lambda s: s.update({UP: False}), "up_proj"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_do_not_add_up(case: str, folder: Path) -> None:
    change, words = SETTINGS[case]
    settings_changed(folder, change)
    refused(folder, words)


TENSORS: dict[str, tuple[Callable[[dict[str, np.ndarray]], object], str]] = {
    "no biases": (lambda t: t.pop(f"{UP}.biases"), "up_proj.biases is missing"),
    "no scales": (lambda t: t.pop(f"{UP}.scales"), "up_proj"),
    "no codes": (lambda t: t.pop(f"{UP}.weight"), "do not fit"),
    "scales of integers": (lambda t: t.update({f"{UP}.scales": np.zeros((64, 2), np.int32)}), "scales is int32"),
    "biases of another shape": (lambda t: t.update({f"{UP}.biases": np.zeros((64, 1), np.float16)}), "up_proj.biases"),
    "scales of another shape": (lambda t: t.update({f"{UP}.scales": np.zeros((64, 3), np.float16)}), "do not fit"),
    "no groups at all": (lambda t: t.update({f"{UP}.scales": np.zeros((64, 0), np.float16)}), "do not fit"),
    "scales without an axis": (lambda t: t.update({f"{UP}.scales": np.zeros((), np.float16)}), "do not fit"),
    "codes of bytes": (lambda t: t.update({f"{UP}.weight": np.zeros((64, 8), np.uint8)}), "up_proj.weight is uint8"),
    "one scale for all": (lambda t: t.update({f"{UP}.global_scale": np.ones(1, np.float32)}), "global_scale"),
    "a bias of the layer": (lambda t: t.update({f"{UP}.bias": np.ones(64, np.float16)}), "up_proj.bias"),
    "floating-point scales with biases": (lambda t: t.update({f"{UP}.scales": np.ones((64, 2), np.uint8)}), "up_proj"),
    "a quantized norm": (
        lambda t: t.update({"model.norm.scales": np.ones((64, 2), np.float16)}), "'model.norm.scales' is not part",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_add_up(case: str, folder: Path) -> None:
    change, words = TENSORS[case]
    tensors_changed(folder, change)
    refused(folder, words)


def test_a_scale_that_is_no_number_is_refused_when_it_is_read(folder: Path) -> None:
    tensors_changed(folder, lambda t: t[f"{UP}.scales"].__setitem__((3, 1), np.float16(np.nan)))
    view = registry.open_checkpoint(folder).weights[f"{UP}.weight"]
    assert isinstance(view, QuantizedView)
    with pytest.raises(QuantkitError, match=r"up_proj.weight: a quantization scale is NaN"):
        view.read()


def test_two_settings_that_differ_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {**config["quantization"], "bits": 8}
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, "quantization and quantization_config differ")


def test_settings_without_a_quantized_weight_are_refused(folder: Path, tmp_path: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())["quantization"]
    dense = exported(quantized_model(CONFIG, lambda slot: None), tmp_path / "dense")
    config = json.loads((dense / "config.json").read_text())
    (dense / "config.json").write_text(json.dumps({**config, "quantization": settings}))
    refused(dense, "there are none")


def test_a_link_out_of_the_folder_is_never_opened(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.safetensors"
    (folder / "model.safetensors").rename(secret)
    (folder / "model.safetensors").symlink_to(secret)
    refused(folder, "outside the model's folder")


def refused(folder: Path, words: str) -> None:
    with pytest.raises(QuantkitError, match=words) as refusal:
        registry.open_checkpoint(folder)
    assert_line(refusal.value)


def assert_line(error: QuantkitError) -> None:
    assert str(error).isprintable()
    assert len(str(error)) <= MAX_MESSAGE


MUTANTS = 300


def test_every_mutant_gets_an_answer(folder: Path) -> None:
    """Damaged settings and headers: a model, or one line."""
    config, weights = (folder / "config.json").read_bytes(), (folder / "model.safetensors").read_bytes()
    length = 8 + int.from_bytes(weights[:8], "little")
    answers = 0
    for number in range(MUTANTS):
        draw = random.Random(number)
        if number % 3:
            changed = json.loads(config)
            changed["quantization"] = json_mutants.damaged(changed["quantization"], draw)
            if draw.random() < 0.5:
                changed["quantization_config"] = changed["quantization"]
            (folder / "config.json").write_bytes(json_mutants.written(changed))
        else:
            (folder / "config.json").write_bytes(config)
            (folder / "model.safetensors").write_bytes(damaged_bytes(weights, draw, reach=length))
        try:
            for weight in registry.open_checkpoint(folder).weights.values():
                weight.read()
        except QuantkitError as error:
            assert_line(error)
            answers += 1
        (folder / "model.safetensors").write_bytes(weights)
    assert MUTANTS // 2 < answers < MUTANTS
