"""What GPTQ folders look like when we write them: literal words, and a packer that knows only the layout's text."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from quantkit.artifacts.publishing import publish
from quantkit.errors import BadOption, UnsupportedSpec
from quantkit.exporters.gptq.exporter import EXPORTER
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import Role, TensorSlot
from quantkit.protocols import ExportOptions
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView
from tests.support.memory import memory_checkpoint, tiny_config
from tests.support.quantized_models import Choice, linears, quantized_model

MINICPM = tiny_config(intermediate_size=96, num_key_value_heads=2)
LLAMA = {**MINICPM, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": False}
SYM4 = AffineGroups(bits=4, group_size=32)
Q = "model.layers.0.self_attn.q_proj"


def written(checkpoint: Checkpoint, folder: Path, kind: str | None = None, arch: str = "native") -> Path:
    publish(EXPORTER.prepare(checkpoint, ExportOptions(type=kind, arch=arch)), folder)
    return folder


def parts_of(folder: Path, module: str) -> dict[str, np.ndarray]:
    """The tensors of one module, as the `safetensors` package reads them."""
    tensors = load_file(folder / "model.safetensors")
    return {name.rpartition(".")[2]: value for name, value in tensors.items() if name.startswith(f"{module}.")}


def settings_of(folder: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((folder / "config.json").read_text())["quantization_config"]
    return settings


def packed_down(codes: np.ndarray, bits: int) -> np.ndarray:
    """Every column of `codes` as one bitstream, code i at bit i * bits, cut into 32-bit words; by whole numbers."""
    count, width = codes.shape
    words = np.zeros((count * bits // 32, width), np.uint32)
    for column in range(width):
        stream = sum(int(code) << (bits * i) for i, code in enumerate(codes[:, column]))
        for row in range(len(words)):
            words[row, column] = (stream >> (32 * row)) & 0xFFFFFFFF
    return words.view(np.int32)


# ------------------------------------------------------------------------------------------------------- literal words


def smallest(bits: int) -> Checkpoint:
    """One block of 32 x 32 matrices; in q_proj code k of output n is (n + k) modulo the levels, one scale per row."""
    config = tiny_config(
        vocab_size=8, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, dim_model_base=8,
    )  # fmt: skip
    spec = AffineGroups(bits=bits, group_size=32)
    rows, cols = np.indices((32, 32))
    scale = np.full((32, 1), 0.5, np.float16)
    scale[1] = -2
    tensor = QuantizedTensor(
        spec,
        ((rows + cols) % spec.levels).astype(np.uint8),
        {"scale": scale, "zero": np.full((32, 1), spec.midpoint, np.uint8)},
    )
    return quantized_model(config, linears(spec), replaced={f"{Q}.weight": tensor})


WORDS = {
    2: (["e4e4e4e4", "e4e4e4e4"], ["39393939", "39393939"], "55555555", "aaaaaaaa"),
    3: (["88fac688", "c688fac6", "fac688fa"], ["d11f58d1", "58d11f58", "1f58d11f"], "db6db6db", "24924924"),
    4: (["76543210", "fedcba98"] * 2, ["87654321", "0fedcba9"] * 2, "77777777", "88888888"),
    8: (
        ["03020100", "07060504", "0b0a0908", "0f0e0d0c", "13121110", "17161514", "1b1a1918", "1f1e1d1c"],
        ["04030201", "08070605", "0c0b0a09", "100f0e0d", "14131211", "18171615", "1c1b1a19", "201f1e1d"],
        "7f7f7f7f",
        "80808080",
    ),
}


@pytest.mark.parametrize("bits", WORDS)
def test_the_smallest_module_has_the_literal_words(bits: int, tmp_path: Path) -> None:
    first, second, zeros_v1, zeros_v2 = WORDS[bits]
    for kind, zeros in (("v1", zeros_v1), ("v2", zeros_v2)):
        parts = parts_of(written(smallest(bits), tmp_path / kind, kind), Q)
        assert {name: (value.dtype.name, value.shape) for name, value in parts.items()} == {
            "qweight": ("int32", (bits, 32)),
            "qzeros": ("int32", (1, bits)),
            "g_idx": ("int32", (32,)),
            "scales": ("float16", (1, 32)),
        }
        words = parts["qweight"].view(np.uint32)
        assert [f"{word:08x}" for word in words[:, 0]] == first
        assert [f"{word:08x}" for word in words[:, 1]] == second
        assert f"{parts['qzeros'].view(np.uint32)[0, 0]:08x}" == zeros
        assert parts["scales"][0, :3].tobytes().hex() == "003800c00038"
        assert parts["g_idx"].tolist() == [0] * 32


TERNARY_WORDS = {
    2: (["79e79e79", "9e79e79e"], "55555555", "aaaaaaaa"),
    4: (["87987987", "79879879", "98798798", "87987987"], "77777777", "88888888"),
}


@pytest.mark.parametrize("bits", TERNARY_WORDS)
def test_ternary_weights_are_the_words_of_codes_about_the_midpoint(bits: int, tmp_path: Path) -> None:
    """-1 0 1 -1 0 1 ... down a column: codes 1 2 3 of 2 bits, 7 8 9 of 4."""
    spec = AffineGroups(bits=2, group_size=32, ternary=True)
    codes = np.tile((np.arange(32, dtype=np.uint8) % 3), (32, 1))
    parts = {"scale": np.full((32, 1), 0.5, np.float16), "zero": np.ones((32, 1), np.uint8)}
    model = quantized_model(
        smallest(4).config, linears(spec), replaced={f"{Q}.weight": QuantizedTensor(spec, codes, parts)}
    )
    words, zeros_v1, zeros_v2 = TERNARY_WORDS[bits]
    for kind, zeros in (("v1", zeros_v1), ("v2", zeros_v2)):
        options = ExportOptions(type=kind, bits=None if bits == 2 else bits)
        publish(EXPORTER.prepare(model, options), tmp_path / kind)
        found = parts_of(tmp_path / kind, Q)
        assert [f"{word:08x}" for word in found["qweight"].view(np.uint32)[:, 0]] == words
        assert {f"{word:08x}" for word in found["qzeros"].view(np.uint32).ravel()} == {zeros}
        assert (found["scales"] == 0.5).all()
        assert settings_of(tmp_path / kind)["bits"] == bits
        back = EXPORTER.read(tmp_path / kind).weights[f"{Q}.weight"]
        assert isinstance(back, QuantizedView)
        assert back.scheme == AffineGroups(bits=bits, group_size=32)
        assert back.read().numbers_digest() == QuantizedTensor(spec, codes, parts).numbers_digest()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [32, -1])
@pytest.mark.parametrize("kind", ["v1", "v2", "v2 asym"])
def test_every_word_is_what_the_text_of_the_layout_says(bits: int, group_size: int, kind: str, tmp_path: Path) -> None:
    spec = AffineGroups(bits=bits, group_size=group_size, symmetric=not kind.endswith("asym"))
    checkpoint = quantized_model(MINICPM, linears(spec))
    folder = written(checkpoint, tmp_path / "m", kind[:2])
    for module in (Q, "model.layers.2.mlp.down_proj"):
        view = checkpoint.weights[f"{module}.weight"]
        assert isinstance(view, QuantizedView)
        tensor, parts = view.read(), parts_of(folder, module)
        stored = tensor.zero - (kind == "v1")
        assert np.array_equal(parts["qweight"], packed_down(tensor.codes.T, bits))
        assert np.array_equal(parts["qzeros"].T, packed_down(stored, bits))
        assert np.array_equal(parts["scales"], tensor.scale.T)
        cols = tensor.shape[1]
        assert parts["g_idx"].tolist() == [k // spec.group_width(cols) for k in range(cols)]


def test_v1_and_v2_differ_in_nothing_but_the_zero_points_and_their_name(tmp_path: Path) -> None:
    checkpoint = quantized_model(MINICPM, linears(SYM4))
    one, two = (written(checkpoint, tmp_path / kind, kind) for kind in ("v1", "v2"))
    first, second = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    for name, value in first.items():
        if name.endswith("qzeros"):
            assert np.array_equal(value.view(np.uint32) + np.uint32(0x11111111), second[name].view(np.uint32))
        else:
            assert value.tobytes() == second[name].tobytes(), name
    assert {**settings_of(one), "format": "gptq_v2", "checkpoint_format": "gptq_v2"} == settings_of(two)


# ------------------------------------------------------------------------------------------------------------ settings


def test_the_settings_have_the_keys_of_every_loader_in_both_files(tmp_path: Path) -> None:
    folder = written(quantized_model(MINICPM, linears(SYM4)), tmp_path / "m")
    settings = settings_of(folder)
    assert json.loads((folder / "quantize_config.json").read_text()) == settings
    assert settings == {
        "bits": 4, "group_size": 32, "sym": True, "desc_act": False, "lm_head": False, "quant_method": "gptq",
        "method": "gptq", "checkpoint_format": "gptq", "format": "gptq", "pack_dtype": "int32", "static_groups": True,
        "true_sequential": True,
    }  # fmt: skip


@pytest.mark.parametrize(("symmetric", "layout"), [(True, "gptq"), (False, "gptq_v2")])
def test_without_a_type_symmetric_models_are_v1_and_others_v2(symmetric: bool, layout: str, tmp_path: Path) -> None:
    checkpoint = quantized_model(MINICPM, linears(replace(SYM4, symmetric=symmetric)))
    assert settings_of(written(checkpoint, tmp_path / "m"))["checkpoint_format"] == layout


def several(slot: TensorSlot) -> AffineGroups | None:
    """The first block's attention in 8 bits, the second's output dense, gate and up asymmetric in the last."""
    if slot.role in (Role.Q, Role.K, Role.V) and slot.layer == 0:
        return AffineGroups(bits=8, group_size=-1)
    if slot.role is Role.O and slot.layer == 1:
        return None
    if slot.role in (Role.GATE, Role.UP) and slot.layer == 2:
        return AffineGroups(bits=4, group_size=32, symmetric=False)
    return linears(SYM4)(slot)


def rule_for(settings: dict[str, Any], module: str) -> dict[str, Any] | None:
    """What the first matching rule makes of a module's settings; None = dense. As GPTQModel and vLLM evaluate them."""
    base = {key: settings[key] for key in ("bits", "group_size", "sym")}
    for rule, changes in settings.get("dynamic", {}).items():
        if re.match(rule[2:], module):
            return None if rule.startswith("-:") else {**base, **changes}
    return base


def test_exceptions_are_rules_for_the_layers_of_the_checkpoint_and_for_fused_ones(tmp_path: Path) -> None:
    checkpoint = quantized_model(LLAMA, several)
    folder = written(checkpoint, tmp_path / "m")
    settings = settings_of(folder)
    assert settings["checkpoint_format"] == "gptq_v2"
    fused = {"q_proj": "qkv_proj", "k_proj": "qkv_proj", "gate_proj": "gate_up_proj", "up_proj": "gate_up_proj"}
    for slot in checkpoint.spec.slots():
        if slot.layer is None or len(slot.shape) == 1:
            continue
        module, spec = slot.name.removesuffix(".weight"), several(slot)
        wanted = spec and {"bits": spec.bits, "group_size": spec.group_size, "sym": spec.symmetric}
        parent, _, last = module.rpartition(".")
        for name in (module, f"{parent}.{fused.get(last, last)}"):
            assert rule_for(settings, name) == wanted, name
    back = EXPORTER.read(folder)
    for name, view in checkpoint.weights.items():
        found = back.weights[name]
        assert getattr(found, "spec", None) == getattr(view, "spec", None), name


# ------------------------------------------------------------------------------------------------------------ refusals


def refused(choose: Choice, *, config: dict[str, Any] = LLAMA, kind: str | None = None) -> UnsupportedSpec:
    with pytest.raises(UnsupportedSpec) as refusal:
        EXPORTER.prepare(quantized_model(config, choose), ExportOptions(type=kind))
    return refusal.value


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        (AffineGroups(bits=5, group_size=32), "holds 2, 3, 4 and 8 bits"),
        (AffineGroups(bits=4, group_size=8), "groups of 16, 32, 64, 128, 256, 512, 1024, or one per row"),
        (AffineGroups(bits=4, group_size=32, scale_dtype="float32"), "float16 scales"),
    ],
)
def test_a_grid_that_the_layout_does_not_have_is_refused(spec: AffineGroups, complaint: str) -> None:
    refusal = refused(linears(spec))
    assert complaint in str(refusal)
    assert f"{Q}.weight" in str(refusal)


def test_asymmetric_v1_is_refused_with_the_way_out() -> None:
    refusal = refused(linears(replace(SYM4, symmetric=False)), kind="v1")
    assert "stores zero points less one" in str(refusal)
    assert refusal.hint == "choose type v2"


def test_layers_that_engines_fuse_must_be_on_one_grid() -> None:
    eight = {Role.K: AffineGroups(bits=8, group_size=32)}
    refusal = refused(lambda slot: eight.get(slot.role) or linears(SYM4)(slot))
    assert "k_proj.weight is int8 g32 sym and model.layers.0.self_attn.q_proj.weight int4 g32 sym" in str(refusal)
    refusal = refused(lambda slot: SYM4 if slot.role in (Role.GATE, Role.DOWN) else None)
    assert "up_proj.weight is dense" in str(refusal)


def test_quantized_ends_become_dense_values_but_do_not_make_a_quantized_model(tmp_path: Path) -> None:
    everything: Choice = lambda slot: SYM4 if len(slot.shape) == 2 else None  # noqa: E731
    checkpoint = quantized_model(LLAMA, everything)
    planned = EXPORTER.prepare(checkpoint, ExportOptions())
    assert len([note for note in planned.notes if "becomes float32 values" in note]) == 2
    publish(planned, tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        view = checkpoint.weights[name]
        assert isinstance(view, QuantizedView)
        assert np.array_equal(tensors[name], view.read().dequantized())
    assert "gptq holds integer weights" in str(refused(lambda slot: SYM4 if slot.role is Role.LM_HEAD else None))


def test_sides_that_are_no_multiple_of_32_are_refused() -> None:
    config = tiny_config(num_attention_heads=4, num_key_value_heads=1)
    assert "k_proj.weight is 16 x 64" in str(refused(linears(SYM4), config=config))


def test_a_dense_model_or_an_unknown_type_is_refused() -> None:
    with pytest.raises(UnsupportedSpec, match="gptq holds integer weights") as refusal:
        EXPORTER.prepare(memory_checkpoint(MINICPM), ExportOptions())
    assert "export hf" in str(refusal.value.hint)
    with pytest.raises(BadOption, match="no type 'q4_0'"):
        EXPORTER.prepare(quantized_model(MINICPM, linears(SYM4)), ExportOptions(type="q4_0"))


@pytest.mark.parametrize(("value", "fits"), [(0.0078125, True), (1e-30, False), (1e6, False)])
def test_bfloat16_scales_are_taken_when_float16_holds_each_of_them(value: float, fits: bool, tmp_path: Path) -> None:
    spec = replace(SYM4, scale_dtype="bfloat16")
    tensor = QuantizedTensor(
        spec,
        np.zeros((64, 64), np.uint8),
        {"scale": np.full((64, 2), value).astype(ml_dtypes.bfloat16), "zero": np.full((64, 2), 8, np.uint8)},
    )
    choose: Choice = lambda slot: spec if slot.name == f"{Q}.weight" else None  # noqa: E731
    checkpoint = quantized_model(tiny_config(num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2), choose)
    names = [f"model.layers.0.self_attn.{x}_proj.weight" for x in "qkv"]
    views = {name: QuantizedView(name, (64, 64), spec, lambda: tensor) for name in names}
    checkpoint = replace(checkpoint, weights={**checkpoint.weights, **views})
    if fits:
        scales = parts_of(written(checkpoint, tmp_path / "m"), Q)["scales"]
        assert scales.dtype == np.float16
        assert (scales == np.float16(value)).all()
    else:
        with pytest.raises(UnsupportedSpec, match=rf"{Q}\.weight: gptq has float16 scales"):
            written(checkpoint, tmp_path / "m")
        assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------------------- the folder


def test_a_native_folder_has_a_config_class_and_a_folded_one_needs_none(tmp_path: Path) -> None:
    checkpoint = quantized_model(MINICPM, linears(SYM4))
    native, llama = written(checkpoint, tmp_path / "n"), written(checkpoint, tmp_path / "l", arch="llama")
    assert (native / "configuration_minicpm.py").is_file()
    assert not (llama / "configuration_minicpm.py").exists()
    config = json.loads((llama / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "auto_map" not in config
    assert EXPORTER.read(native).notes == ()


def test_what_vllm_does_not_load_is_told() -> None:
    way_out = "; --bits 4 stores the same numbers for it"
    for spec, told in ((SYM4, []), (replace(SYM4, symmetric=False), [False]), (replace(SYM4, bits=3), [True])):
        notes = EXPORTER.prepare(quantized_model(MINICPM, linears(spec)), ExportOptions()).notes
        assert [note.endswith(way_out) for note in notes if "vLLM" in note] == told
