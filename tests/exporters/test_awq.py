"""AWQ's GEMM layout: literal words, a packer that knows only the layout's text, and folders that others wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.errors import (
    BadConfig,
    BadOption,
    IncompleteCheckpoint,
    InconsistentCheckpoint,
    QuantkitError,
    UnsupportedSpec,
)
from quantkit.exporters.awq import EXPORTER
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.recognition import parse_config
from quantkit.models.spec import LINEAR_ROLES, Role
from quantkit.protocols import ExportOptions
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView
from tests.support.memory import memory_checkpoint, random_arrays, tiny_config
from tests.support.quantized_models import Choice, linears, quantized_model

MINICPM = tiny_config(num_key_value_heads=2)
LLAMA = {**MINICPM, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": False}
SYM4, ASYM4 = AffineGroups(bits=4, group_size=32), AffineGroups(bits=4, group_size=32, symmetric=False)
Q, UP = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"
ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def written(checkpoint: Checkpoint, folder: Path, arch: str = "native") -> Path:
    publish(EXPORTER.prepare(checkpoint, ExportOptions(arch=arch)), folder)
    return folder


def parts_of(folder: Path, module: str) -> dict[str, np.ndarray]:
    """The tensors of one module, as the `safetensors` package reads them."""
    tensors = load_file(folder / "model.safetensors")
    return {name.rpartition(".")[2]: value for name, value in tensors.items() if name.startswith(f"{module}.")}


def packed_across(codes: np.ndarray) -> np.ndarray:
    """Rows of codes, eight to a word: nibble i of word c is code 8 c + ORDER[i]; nibble by nibble."""
    words = np.zeros((codes.shape[0], codes.shape[1] // 8), np.uint32)
    for k, c in np.ndindex(words.shape):
        words[k, c] = sum(int(codes[k, 8 * c + ORDER[i]]) << (4 * i) for i in range(8))
    return words.view(np.int32)


def test_the_smallest_module_has_the_literal_words(tmp_path: Path) -> None:
    """32 outputs of 32 inputs: code k of output n is (n + k) % 16, zero point n % 16."""
    config = tiny_config(
        vocab_size=8, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, dim_model_base=8,
    )  # fmt: skip
    rows, cols = np.indices((32, 32))
    scale = np.full((32, 1), 0.5, np.float16)
    scale[1] = -2
    tensor = QuantizedTensor(
        ASYM4,
        ((rows + cols) % 16).astype(np.uint8),
        {"scale": scale, "zero": (np.arange(32, dtype=np.uint8) % 16)[:, None]},
    )
    parts = parts_of(
        written(quantized_model(config, linears(ASYM4), replaced={f"{Q}.weight": tensor}), tmp_path / "m"), Q
    )
    assert {name: (value.dtype.name, value.shape) for name, value in parts.items()} == {
        "qweight": ("int32", (32, 4)),
        "qzeros": ("int32", (1, 4)),
        "scales": ("float16", (1, 32)),
    }
    words = parts["qweight"].view(np.uint32)
    assert [f"{word:08x}" for word in words[0]] == ["75316420", "fdb9eca8"] * 2
    assert [f"{word:08x}" for word in words[1]] == ["86427531", "0ecafdb9"] * 2
    assert [f"{word:08x}" for word in parts["qzeros"].view(np.uint32)[0]] == ["75316420", "fdb9eca8"] * 2
    assert parts["scales"][0, :3].tobytes().hex() == "003800c00038"


def test_ternary_weights_are_the_words_of_codes_about_8(tmp_path: Path) -> None:
    """Output n of every input is n % 3 - 1: codes 7 8 9 7 8 9 7 8 | 9 7 8 ..., in AutoAWQ's order."""
    config = tiny_config(
        vocab_size=8, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, dim_model_base=8,
    )  # fmt: skip
    spec = AffineGroups(bits=2, group_size=32, ternary=True)
    codes = np.repeat((np.arange(32, dtype=np.uint8) % 3)[:, None], 32, axis=1)
    tensor = QuantizedTensor(
        spec, codes, {"scale": np.full((32, 1), 0.5, np.float16), "zero": np.ones((32, 1), np.uint8)}
    )
    folder = written(quantized_model(config, linears(spec), replaced={f"{Q}.weight": tensor}), tmp_path / "m")
    parts = parts_of(folder, Q)
    assert [f"{word:08x}" for word in parts["qweight"].view(np.uint32)[0]] == [
        "89787897", "78979789", "97898978", "89787897",
    ]  # fmt: skip
    assert {f"{word:08x}" for word in parts["qzeros"].view(np.uint32).ravel()} == {"88888888"}
    back = EXPORTER.read(folder).weights[f"{Q}.weight"]
    assert isinstance(back, QuantizedView)
    assert back.scheme == AffineGroups(bits=4, group_size=32)
    assert back.read().numbers_digest() == tensor.numbers_digest()


@pytest.mark.parametrize("spec", [SYM4, ASYM4, replace(ASYM4, group_size=-1)], ids=str)
def test_every_word_is_what_the_text_of_the_layout_says(spec: AffineGroups, tmp_path: Path) -> None:
    checkpoint = quantized_model(MINICPM, linears(spec))
    folder = written(checkpoint, tmp_path / "m")
    for module in (Q, "model.layers.2.mlp.down_proj"):
        view = checkpoint.weights[f"{module}.weight"]
        assert isinstance(view, QuantizedView)
        tensor, parts = view.read(), parts_of(folder, module)
        assert np.array_equal(parts["qweight"], packed_across(tensor.codes.T))
        assert np.array_equal(parts["qzeros"], packed_across(tensor.zero.T))
        assert np.array_equal(parts["scales"], tensor.scale.T)
    assert spec.symmetric == all(
        view.scheme.symmetric for view in EXPORTER.read(folder).weights.values() if isinstance(view, QuantizedView)
    )


def first_block_dense(slot: Any) -> AffineGroups | None:
    return ASYM4 if slot.role in LINEAR_ROLES and slot.layer else None


@pytest.mark.parametrize("choose", [linears(ASYM4), first_block_dense], ids=["all", "first block dense"])
def test_the_settings_are_autoawqs(choose: Choice, tmp_path: Path) -> None:
    config = json.loads((written(quantized_model(LLAMA, choose), tmp_path / "m") / "config.json").read_text())
    dense = [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]
    left = [*(f"model.layers.0.{name}" for name in dense), "lm_head"] if choose is first_block_dense else None
    assert config["quantization_config"] == {
        "quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm",
        "modules_to_not_convert": left,
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        (AffineGroups(bits=8, group_size=32), "holds 4 bits only"),
        (AffineGroups(bits=4, group_size=16), "groups of 32, 64, 128, or one per row"),
        (AffineGroups(bits=4, group_size=32, scale_dtype="float32"), "float16 scales"),
    ],
)
def test_a_grid_that_the_layout_does_not_have_is_refused(spec: AffineGroups, complaint: str) -> None:
    with pytest.raises(UnsupportedSpec, match=complaint) as refusal:
        EXPORTER.prepare(quantized_model(LLAMA, linears(spec)), ExportOptions())
    assert f"{Q}.weight" in str(refusal.value)


REFUSED: dict[str, tuple[Choice, dict[str, Any], str]] = {
    "two group sizes": (
        lambda slot: replace(SYM4, group_size=-1) if slot.role is Role.DOWN else linears(SYM4)(slot), LLAMA,
        r"down_proj\.weight is int4 row sym and model\.layers\.0\.self_attn\.q_proj\.weight int4 g32 sym"),
    "half a fused layer": (lambda slot: SYM4 if slot.role is Role.GATE else None, LLAMA, r"up_proj\.weight is dense"),
    "a head alone": (lambda slot: SYM4 if slot.role is Role.LM_HEAD else None, LLAMA, "awq holds integer weights"),
    "16 rows": (
        linears(SYM4), tiny_config(num_attention_heads=4, num_key_value_heads=1), r"k_proj\.weight has 16 rows"),
    "nothing quantized": (lambda slot: None, LLAMA, "awq holds integer weights"),
}  # fmt: skip


@pytest.mark.parametrize(("choose", "config", "complaint"), REFUSED.values(), ids=REFUSED.keys())
def test_what_does_not_fit_is_refused_by_name(choose: Choice, config: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UnsupportedSpec, match=complaint) as refusal:
        EXPORTER.prepare(quantized_model(config, choose), ExportOptions())
    assert refusal.value.hint


def test_a_dense_model_or_an_unknown_type_is_refused() -> None:
    with pytest.raises(UnsupportedSpec, match="awq holds integer weights"):
        EXPORTER.prepare(memory_checkpoint(MINICPM), ExportOptions())
    with pytest.raises(BadOption, match="no type 'gemv'"):
        EXPORTER.prepare(quantized_model(MINICPM, linears(SYM4)), ExportOptions(type="gemv"))


# -------------------------------------------------------------------------------------------------------- from others


@pytest.mark.parametrize("settings_in", ["config.json", "quant_config.json"])
def test_a_folder_that_another_packer_wrote_reads_to_its_codes(settings_in: str, tmp_path: Path) -> None:
    """AutoAWQ's own names for the settings, which the official MiniCPM4.1-8B-AutoAWQ has, and biases of zeros."""
    random, spec = np.random.default_rng(5), parse_config(LLAMA)
    tensors, chosen = {}, {}
    for slot in spec.slots():
        if slot.role not in LINEAR_ROLES:
            tensors[slot.name] = random_arrays(spec)[slot.name].astype(np.float16)
            continue
        rows, cols = slot.shape
        codes, zero = random.integers(0, 16, (cols, rows)), random.integers(0, 16, (cols // 32, rows))
        scale = random.normal(0, 0.01, (cols // 32, rows)).astype(np.float16)
        chosen[slot.name] = ((codes - zero.repeat(32, 0)).astype(np.float32) * scale.repeat(32, 0)).T
        module = slot.name.removesuffix(".weight")
        tensors |= {
            f"{module}.qweight": packed_across(codes),
            f"{module}.qzeros": packed_across(zero),
            f"{module}.scales": scale,
            f"{module}.bias": np.zeros(rows, np.float16),
        }
    folder = tmp_path / "theirs"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}
    config = {**LLAMA, "quantization_config": {"quant_method": "awq", **settings}}
    (folder / "config.json").write_text(json.dumps(config if settings_in == "config.json" else LLAMA))
    if settings_in != "config.json":
        (folder / settings_in).write_text(json.dumps(settings))
    assert registry.recognize(folder) is EXPORTER
    back = EXPORTER.read(folder)
    for name, values in chosen.items():
        tensor = back.weights[name].read()
        assert tensor.scheme == ASYM4
        assert np.array_equal(tensor.dequantized(), values)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Asymmetric int4 in every linear layer of an untied Llama; the test may change it."""
    return written(quantized_model(LLAMA, linears(ASYM4)), tmp_path / "folder")


BAD_SETTINGS: dict[str, tuple[dict[str, Any], type[QuantkitError], str]] = {
    "another layout": ({"version": "gemv"}, UnsupportedSpec, "version 'gemv' is not supported; only gemm"),
    "eight bits": ({"bits": 8}, UnsupportedSpec, "bits '8'"),
    "bits that are true": ({"bits": True}, UnsupportedSpec, "bits 'True'"),
    "no zero points": ({"zero_point": False}, UnsupportedSpec, "zero_point 'False'"),
    "no groups": ({"group_size": 0}, BadConfig, "group_size must be -1 or positive"),
    "groups in words": ({"group_size": "32"}, BadConfig, "group_size must be"),
    "groups that do not divide": ({"group_size": 48}, UnsupportedSpec, "64 columns are not a multiple"),
    "other groups than the tensors": ({"group_size": 16}, InconsistentCheckpoint, r"qzeros is int32 \[2, 8\]"),
}


@pytest.mark.parametrize(("change", "error", "complaint"), BAD_SETTINGS.values(), ids=BAD_SETTINGS.keys())
def test_settings_that_are_not_ours_to_read_are_refused(
    change: dict[str, Any], error: type[QuantkitError], complaint: str, folder: Path
) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"].update(change)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(QuantkitError, match=complaint) as refusal:
        EXPORTER.read(folder)
    assert type(refusal.value) is error
    assert str(folder) in str(refusal.value)


BAD_TENSORS: dict[str, tuple[Callable[[dict[str, np.ndarray]], Any], type[QuantkitError], str]] = {
    "no codes": (lambda t: t.pop(f"{UP}.qweight"), IncompleteCheckpoint, rf"'{UP}\.weight' is missing"),
    "no scales": (lambda t: t.pop(f"{UP}.scales"), IncompleteCheckpoint, rf"{UP}\.scales is missing"),
    "no zero points": (lambda t: t.pop(f"{UP}.qzeros"), IncompleteCheckpoint, rf"{UP}\.qzeros is missing"),
    "codes in GPTQ's layout": (
        lambda t: t.update({f"{UP}.qweight": np.ones((8, 96), np.int32)}), InconsistentCheckpoint,
        r"qweight is int32 \[8, 96\], int4 g32 sym of 96 x 64 needs int32 \[64, 12\]"),
    "a dense weight as well": (
        lambda t: t.update({f"{UP}.weight": np.ones((96, 64), np.float32)}), InconsistentCheckpoint,
        f"{UP}.weight is there dense and quantized"),
    "a bias": (lambda t: t.update({f"{UP}.bias": np.ones(96, np.float16)}), UnsupportedSpec, "bias is not zero"),
    "a group index": (
        lambda t: t.update({f"{UP}.g_idx": np.zeros(64, np.int32)}), InconsistentCheckpoint, "g_idx"),
    "a quantized embedding": (
        lambda t: t.update({"model.embed_tokens.qweight": t[f"{UP}.qweight"]}), UnsupportedSpec, "embeddings dense"),
    "no norm": (lambda t: t.pop("model.norm.weight"), IncompleteCheckpoint, "'model.norm.weight' is missing"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "error", "complaint"), BAD_TENSORS.values(), ids=BAD_TENSORS.keys())
def test_tensors_that_contradict_the_settings_are_refused(
    change: Callable[[dict[str, np.ndarray]], Any], error: type[QuantkitError], complaint: str, folder: Path
) -> None:
    tensors = dict(load_file(folder / "model.safetensors"))
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(QuantkitError, match=complaint) as refusal:
        EXPORTER.read(folder)
    assert type(refusal.value) is error
