"""Ternary weights in compressed-tensors: codes 1 to 3 of 2 bits in a group of that name, for us and for the package."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from quantkit.artifacts.publishing import publish
from quantkit.errors import BadConfig, InconsistentCheckpoint
from quantkit.exporters.compressed_tensors.exporter import EXPORTER
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import Role
from quantkit.protocols import ExportOptions
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView
from tests.support.memory import tiny_config
from tests.support.quantized_models import Choice, linears, quantized_model

LLAMA = tiny_config(architectures=["LlamaForCausalLM"], model_type="llama", tie_word_embeddings=False)
TERNARY = AffineGroups(bits=2, group_size=32, ternary=True)
PLAIN = replace(TERNARY, ternary=False)
Q = "model.layers.0.self_attn.q_proj"
MIXED = {
    Role.Q: TERNARY,
    Role.K: PLAIN,
    Role.O: replace(TERNARY, group_size=-1, scale_dtype="bfloat16"),
    Role.UP: AffineGroups(bits=4, group_size=32, symmetric=False),
    Role.DOWN: replace(TERNARY, scale_dtype="bfloat16"),
}
mixed: Choice = lambda slot: MIXED.get(slot.role)  # noqa: E731


def written(checkpoint: Checkpoint, folder: Path) -> Path:
    publish(EXPORTER.prepare(checkpoint, ExportOptions()), folder)
    return folder


def quantization_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())["quantization_config"]
    return found


def read_of(checkpoint: Checkpoint, name: str) -> QuantizedTensor:
    view = checkpoint.weights[name]
    assert isinstance(view, QuantizedView)
    return view.read()


def test_the_smallest_module_has_the_literal_words(tmp_path: Path) -> None:
    """16 inputs are one word: -1 0 1 -1 0 1 ... and its reverse; codes 1 2 3 from the lowest bits on."""
    config = tiny_config(
        vocab_size=4, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, dim_model_base=8,
    )  # fmt: skip
    codes = np.arange(16, dtype=np.uint8) % 3
    tensor = QuantizedTensor(
        AffineGroups(bits=2, group_size=-1, ternary=True),
        np.stack([codes if row % 2 == 0 else codes[::-1] for row in range(16)]),
        {"scale": np.full((16, 1), 0.25, np.float16), "zero": np.ones((16, 1), np.uint8)},
    )
    model = quantized_model(config, lambda slot: None, replaced={f"{Q}.weight": tensor})
    folder = written(model, tmp_path / "m")
    parts = {k.rpartition(".")[2]: v for k, v in load_file(folder / "model.safetensors").items() if k.startswith(Q)}
    assert sorted(parts) == ["weight_packed", "weight_scale", "weight_shape"]
    assert [f"{word:08x}" for word in parts["weight_packed"].view(np.uint32)[:2, 0]] == ["79e79e79", "6db6db6d"]
    group = quantization_of(folder)["config_groups"]["ternary_0"]
    assert group["weights"] == {
        "dynamic": False, "group_size": None, "num_bits": 2, "strategy": "channel", "symmetric": True, "type": "int",
    }  # fmt: skip
    back = read_of(EXPORTER.read(folder), f"{Q}.weight")
    assert back.scheme == tensor.scheme
    assert np.array_equal(back.codes, tensor.codes)


def test_a_group_of_that_name_holds_ternary_weights_and_others_may_lie_beside_it(tmp_path: Path) -> None:
    model = quantized_model(LLAMA, mixed)
    folder = written(model, tmp_path / "m")
    groups = quantization_of(folder)["config_groups"]
    assert {name: group["weights"]["num_bits"] for name, group in groups.items()} == {
        "ternary_0": 2, "group_1": 2, "ternary_2": 2, "group_3": 4,
    }  # fmt: skip
    back = EXPORTER.read(folder)
    for name, view in model.weights.items():
        if isinstance(view, QuantizedView):
            found = read_of(back, name)
            assert found.scheme == view.scheme, name
            assert found.numbers_digest() == view.read().numbers_digest(), name


def test_another_name_makes_them_plain_codes_of_two_bits_with_the_same_numbers(tmp_path: Path) -> None:
    """As a reader sees them that knows nothing of the name."""
    model = quantized_model(LLAMA, linears(TERNARY))
    folder = written(model, tmp_path / "m")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"ternary_0"', '"group_0"'))
    found = read_of(EXPORTER.read(folder), f"{Q}.weight")
    assert found.scheme == PLAIN
    assert found.numbers_digest() == read_of(model, f"{Q}.weight").numbers_digest()


@pytest.mark.parametrize("name", ["ternary_0", "ternary_17"])
def test_a_code_of_minus_two_in_such_a_group_is_refused_by_name(name: str, tmp_path: Path) -> None:
    folder = written(quantized_model(LLAMA, linears(PLAIN)), tmp_path / "m")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"group_0"', f'"{name}"'))
    checkpoint = EXPORTER.read(folder)
    with pytest.raises(InconsistentCheckpoint, match=rf"^{Q}\.weight: config.json says ternary g32, .* codes below 1"):
        read_of(checkpoint, f"{Q}.weight")


BAD: dict[str, Callable[[dict[str, Any]], None]] = {
    "three bits": lambda weights: weights.update(num_bits=3),
    "zero points": lambda weights: weights.update(symmetric=False),
}


@pytest.mark.parametrize("change", BAD.values(), ids=BAD)
def test_a_ternary_group_has_two_bits_and_no_zero_points(
    change: Callable[[dict[str, Any]], None], tmp_path: Path
) -> None:
    folder = written(quantized_model(LLAMA, linears(TERNARY)), tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    change(config["quantization_config"]["config_groups"]["ternary_0"]["weights"])
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadConfig, match="ternary_0: what is named ternary has symmetric codes of 2 bits"):
        EXPORTER.read(folder)


def test_one_damaged_code_does_not_pass_for_another_weight(tmp_path: Path) -> None:
    folder = written(quantized_model(LLAMA, linears(TERNARY)), tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    packed = tensors[f"{Q}.weight_packed"].copy()
    packed.view(np.uint32)[5, 1] &= np.uint32(0xFFFFFFFC)
    save_file({**tensors, f"{Q}.weight_packed": packed}, folder / "model.safetensors")
    with pytest.raises(InconsistentCheckpoint, match="codes below 1"):
        read_of(EXPORTER.read(folder), f"{Q}.weight")


# ---------------------------------------------------------------------------------------------- the package as judge


def test_the_package_accepts_the_names_and_decompresses_to_the_same_values_bit_for_bit(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import pack_quantized  # noqa: PLC0415 - heavy
    from compressed_tensors.quantization import QuantizationConfig  # noqa: PLC0415
    from safetensors.torch import load_file as load_torch  # noqa: PLC0415

    model = quantized_model(LLAMA, mixed)
    folder = written(model, tmp_path / "m")
    config = QuantizationConfig.model_validate(quantization_of(folder))
    assert set(config.config_groups) == {"ternary_0", "group_1", "ternary_2", "group_3"}
    tensors, compared = load_torch(folder / "model.safetensors"), 0
    for scheme in config.config_groups.values():
        for module in scheme.targets:
            state = {key.rpartition(".")[2]: value for key, value in tensors.items() if key.startswith(f"{module}.")}
            wide = {**state, "weight_scale": state["weight_scale"].float()}
            found = pack_quantized.PackedQuantizationCompressor.decompress(wide, scheme)["weight"]
            wanted = torch.from_numpy(read_of(model, f"{module}.weight").dequantized())
            assert torch.equal(found, wanted), module
            compared += 1
    assert compared == sum(isinstance(view, QuantizedView) for view in model.weights.values())


@pytest.mark.engine("transformers")
def test_transformers_loads_a_ternary_folder_to_the_logits_of_the_reference(tmp_path: Path) -> None:
    from quantkit import registry  # noqa: PLC0415

    runtime = registry.runtime("transformers")
    if runtime.missing() is not None:
        pytest.skip(f"transformers: {runtime.missing()}")
    pytest.importorskip("compressed_tensors")
    folder = written(quantized_model(LLAMA, linears(TERNARY)), tmp_path / "m")
    checkpoint, ids = registry.open_checkpoint(folder), [1, 7, 42, 5, 90]
    assert (runtime.refuses(checkpoint), runtime.arithmetic(checkpoint)) == (None, "float32")
    with registry.runtime("reference").open(folder) as oracle, runtime.open(folder) as session:
        wanted, found = oracle.logits(ids), session.logits(ids)
    assert np.abs(found - wanted).max() < 32 * np.finfo(np.float32).eps * np.abs(wanted).max()
