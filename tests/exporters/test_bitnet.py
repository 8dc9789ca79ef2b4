"""transformers' BitNet layout: literal bytes, its own packer and loader as judges, and what one scale cannot hold."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.errors import BadConfig, IncompleteCheckpoint, InconsistentCheckpoint, QuantkitError, UnsupportedSpec
from quantkit.exporters.bitnet import EXPORTER
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import LINEAR_ROLES, Role, TensorSlot
from quantkit.pipeline.planned_model import planned
from quantkit.pipeline.planning.plan import plan
from quantkit.pipeline.recipe import Recipe
from quantkit.protocols import ExportOptions
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.scheme import PER_ROW
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView, TensorView
from tests.support.memory import memory_checkpoint, tiny_config
from tests.support.quantized_models import Choice, linears, one_scale_each, quantized_model

MINICPM = tiny_config()
LLAMA = {**MINICPM, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": False}
TERNARY = AffineGroups(bits=2, group_size=32, ternary=True)
Q, UP = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"


EVERY_LAYER = linears(TERNARY)


def model(choose: Choice = EVERY_LAYER, config: dict[str, Any] = LLAMA) -> Checkpoint:
    return one_scale_each(quantized_model(config, choose))


def written(checkpoint: Checkpoint, folder: Path, arch: str = "native") -> Path:
    publish(EXPORTER.prepare(checkpoint, ExportOptions(arch=arch)), folder)
    return folder


def read_of(checkpoint: Checkpoint, name: str) -> QuantizedTensor:
    view = checkpoint.weights[name]
    assert isinstance(view, QuantizedView)
    return view.read()


def settings_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())["quantization_config"]
    return found


# ------------------------------------------------------------------------------------------------------------ the bytes


def smallest(scale: np.ndarray) -> Checkpoint:
    """One block of 8 x 8 matrices; code k of output n of q_proj is (n + k) % 3."""
    config = tiny_config(
        vocab_size=4, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, dim_model_base=8,
    )  # fmt: skip
    rows, cols = np.indices((8, 8))
    tensor = QuantizedTensor(
        AffineGroups(bits=2, group_size=-1, ternary=True, scale_dtype=scale.dtype.name),
        ((rows + cols) % 3).astype(np.uint8),
        {"scale": scale, "zero": np.ones((8, 1), np.uint8)},
    )
    return quantized_model(config, lambda slot: None, replaced={f"{Q}.weight": tensor})


@pytest.mark.parametrize(("dtype", "half"), [(np.float16, "0038"), (ml_dtypes.bfloat16, "003f")])
def test_the_smallest_module_has_the_literal_bytes(dtype: Any, half: str, tmp_path: Path) -> None:
    """Byte [0, 0] holds outputs 0, 2, 4 and 6 of input 0: codes 0 2 1 0, from the lowest bits on: 0b00_01_10_00."""
    folder = written(smallest(np.full((8, 1), 0.5, dtype)), tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    parts = {name.rpartition(".")[2]: value for name, value in tensors.items() if name.startswith(f"{Q}.")}
    assert {name: (value.dtype.name, value.shape) for name, value in parts.items()} == {
        "weight": ("uint8", (2, 8)),
        "weight_scale": (np.dtype(dtype).name, (1,)),
    }
    assert parts["weight"].tobytes().hex() == "1861861861861861" "6186186186186186"  # fmt: skip
    assert parts["weight_scale"].tobytes().hex() == half
    assert settings_of(folder) == {
        "linear_class": "autobitlinear", "quant_method": "bitnet", "quantization_mode": "offline",
        "modules_to_not_convert": [
            *(f"model.layers.0.self_attn.{x}_proj" for x in "kvo"),
            *(f"model.layers.0.mlp.{x}_proj" for x in ("gate", "up", "down")), "lm_head",
        ],
        "use_rms_norm": False,
    }  # fmt: skip


def test_transformers_packs_the_same_bytes(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    bitnet = pytest.importorskip("transformers.integrations.bitnet")
    given = model()
    tensors = load_file(written(given, tmp_path / "m") / "model.safetensors")
    for name, view in given.weights.items():
        if isinstance(view, QuantizedView):
            levels = torch.from_numpy(view.read().codes.astype(np.int8) - 1)
            assert np.array_equal(bitnet.pack_weights(levels).numpy(), tensors[name]), name


def some_dense(slot: TensorSlot) -> AffineGroups | None:
    """The first block is dense but for its output; the head is in 4 bits, which becomes dense values."""
    if slot.role is Role.LM_HEAD:
        return AffineGroups(bits=4, group_size=32)
    return TERNARY if slot.role in LINEAR_ROLES and (slot.layer or slot.role is Role.O) else None


def test_layers_that_stay_dense_are_named_and_come_back(tmp_path: Path) -> None:
    given = model(some_dense)
    folder = written(given, tmp_path / "m")
    named = settings_of(folder)["modules_to_not_convert"]
    dense = [name for name, view in given.weights.items() if ".0." in name and isinstance(view, TensorView)]
    assert named == [name.removesuffix(".weight") for name in dense if "norm" not in name] + ["lm_head"]
    back = EXPORTER.read(folder)
    assert {view.scheme for view in back.weights.values() if isinstance(view, QuantizedView)} == {
        replace(TERNARY, group_size=-1)
    }
    for name, view in given.weights.items():
        found = back.weights[name]
        if isinstance(found, QuantizedView):
            assert found.read().numbers_digest() == read_of(given, name).numbers_digest(), name
        elif isinstance(view, TensorView):
            assert np.array_equal(found.read(), view.read()), name
    assert isinstance(back.weights["lm_head.weight"], TensorView)


# ------------------------------------------------------------------------------------------------------- one scale each


def test_groups_of_zeros_may_have_had_any_scale(tmp_path: Path) -> None:
    """As an import leaves them: 1, or what was there; no engine sees it, and no digest."""
    scale = np.full((8, 1), 0.25, np.float16)
    scale[[2, 5]] = [[1], [0]]
    given = smallest(scale)
    tensor = read_of(given, f"{Q}.weight")
    codes = tensor.codes.copy()
    codes[[2, 5]] = 1
    zeroed = QuantizedTensor(tensor.scheme, codes, tensor.arrays)
    view = given.weights[f"{Q}.weight"]
    assert isinstance(view, QuantizedView)
    weights = {**given.weights, f"{Q}.weight": replace(view, read=lambda: zeroed)}
    back = read_of(EXPORTER.read(written(replace(given, weights=weights), tmp_path / "m")), f"{Q}.weight")
    assert (back.scale == 0.25).all()
    assert np.array_equal(back.dequantized(), zeroed.dequantized())
    assert back.numbers_digest() == zeroed.numbers_digest()


def test_several_scales_are_refused_with_their_number_before_anything_is_written(tmp_path: Path) -> None:
    given = quantized_model(LLAMA, linears(TERNARY))
    count = len(np.unique(read_of(given, f"{Q}.weight").scale))
    with pytest.raises(UnsupportedSpec, match=rf"^{Q}\.weight: bitnet has one scale .* has {count} scales") as refusal:
        written(given, tmp_path / "m")
    assert "gguf hold a scale for each group" in (refusal.value.hint or "")
    assert list(tmp_path.iterdir()) == []


REFUSED: dict[str, tuple[Choice, dict[str, Any], str]] = {
    "four bits": (linears(AffineGroups(bits=4, group_size=32)), LLAMA, r"q_proj\.weight: bitnet holds ternary weights"),
    "two bits": (linears(replace(TERNARY, ternary=False)), LLAMA, "not int2 g32 sym"),
    "98 rows": (linears(TERNARY), {**LLAMA, "intermediate_size": 98}, r"gate_proj\.weight has 98 rows; .* of 4"),
    "a head alone": (
        lambda slot: TERNARY if slot.role is Role.LM_HEAD else None,
        LLAMA,
        "bitnet holds integer weights",
    ),
    "nothing quantized": (lambda slot: None, LLAMA, "bitnet holds integer weights"),
}


@pytest.mark.parametrize(("choose", "config", "complaint"), REFUSED.values(), ids=REFUSED)
def test_what_the_layout_does_not_hold_is_refused_by_name(
    choose: Choice, config: dict[str, Any], complaint: str
) -> None:
    narrow = [TERNARY, replace(TERNARY, group_size=-1)][config["intermediate_size"] == 98]
    with pytest.raises(UnsupportedSpec, match=complaint) as refusal:
        EXPORTER.prepare(model(choose if config is LLAMA else linears(narrow), config), ExportOptions())
    assert refusal.value.hint


def test_a_plan_of_what_is_not_quantized_yet_says_that_it_cannot_know() -> None:
    source = memory_checkpoint(LLAMA)
    (made,) = plan(planned(source, Recipe().assign(source.spec, TERNARY, "rtn")), ["bitnet"]).targets
    assert (made.refusal or "").startswith(f"{Q}.weight: whether the container holds it is known from its numbers")
    assert made.hint == "quantize first, and plan the result"
    (made,) = plan(model(), ["bitnet"]).targets
    assert made.refusal is None
    assert made.loads_in == "loads in: transformers, reference"
    assert [verdict.remark for verdict in made.kernels] == ["rounds the inputs of its layers to int8"]
    (made,) = plan(model(config=MINICPM), ["bitnet"]).targets
    assert made.loads_in == "loads in: reference (transformers: needs --arch llama)"


def test_scales_that_the_dtype_of_the_dense_weights_does_not_hold_are_told() -> None:
    """transformers loads the folder in that dtype, here bfloat16."""
    for value, told in ((0.25, 0), (0.2505, 1)):
        notes = EXPORTER.prepare(smallest(np.full((8, 1), value, np.float16)), ExportOptions()).notes
        assert (
            len([note for note in notes if "are no bfloat16 numbers, to which transformers rounds them" in note])
            == told
        )


# -------------------------------------------------------------------------------------------------------------- reading


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written(model(), tmp_path / "m")


def change_settings(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"].update(changes)
    (folder / "config.json").write_text(json.dumps(config))


BAD_SETTINGS: dict[str, tuple[dict[str, Any], type[QuantkitError], str]] = {
    "scales that divide": ({"linear_class": "bitlinear"}, UnsupportedSpec, "linear_class 'bitlinear' is not supported"),
    "no class": ({"linear_class": None}, UnsupportedSpec, "linear_class 'None'"),
    "rounded at every step": ({"quantization_mode": "online"}, UnsupportedSpec, "quantization_mode 'online'"),
    "norms before layers": ({"use_rms_norm": True}, UnsupportedSpec, "use_rms_norm"),
    "names that are none": ({"modules_to_not_convert": [1]}, BadConfig, "must be a list of names"),
    "a string of names": ({"modules_to_not_convert": "lm_head"}, BadConfig, "must be a list of names"),
    "packed where dense": ({"modules_to_not_convert": [Q]}, InconsistentCheckpoint, f"{Q}.weight is packed"),
}


@pytest.mark.parametrize(("changes", "error", "complaint"), BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_settings_that_mean_something_else_are_refused(
    changes: dict[str, Any], error: type[QuantkitError], complaint: str, folder: Path
) -> None:
    change_settings(folder, **changes)
    with pytest.raises(QuantkitError, match=complaint) as refusal:
        EXPORTER.read(folder)
    assert type(refusal.value) is error
    assert str(folder) in str(refusal.value)


Tensors = dict[str, np.ndarray]
BAD_TENSORS: dict[str, tuple[Callable[[Tensors], Any], type[QuantkitError], str]] = {
    "no scale": (lambda t: t.pop(f"{Q}.weight_scale"), IncompleteCheckpoint, f"{Q}.weight_scale is missing"),
    "two scales": (
        lambda t: t.update({f"{Q}.weight_scale": np.ones(2, np.float16)}), InconsistentCheckpoint, r"float16 \[2\]"),
    "a scale that is an integer": (
        lambda t: t.update({f"{Q}.weight_scale": np.ones(1, np.int32)}), InconsistentCheckpoint, r"int32 \[1\]"),
    "too few bytes": (
        lambda t: t.update({f"{UP}.weight": t[f"{UP}.weight"][1:].copy()}), InconsistentCheckpoint,
        r"up_proj\.weight is uint8 \[23, 64\]"),
    "a packed embedding": (
        lambda t: t.update({"model.embed_tokens.weight": np.zeros((25, 64), np.uint8)}), InconsistentCheckpoint,
        "embed_tokens.weight is packed"),
    "nothing packed": (
        lambda t: [t.update({k: np.ones((1, 1), np.float32)}) for k, v in t.items() if v.dtype == np.uint8],
        InconsistentCheckpoint, "but no weight is packed"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "error", "complaint"), BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_tensors_that_contradict_the_layout_are_refused(
    change: Callable[[Tensors], Any], error: type[QuantkitError], complaint: str, folder: Path
) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(QuantkitError, match=complaint) as refusal:
        EXPORTER.read(folder)
    assert type(refusal.value) is error


def test_a_fourth_code_or_a_scale_that_is_no_number_is_refused_by_name(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    spoilt = tensors[f"{Q}.weight"].copy()
    spoilt[3, 5] |= 0b1100
    save_file({**tensors, f"{Q}.weight": spoilt, f"{UP}.weight_scale": np.full(1, np.nan, np.float16)},
              folder / "model.safetensors")  # fmt: skip
    back = EXPORTER.read(folder)
    for name, complaint in ((Q, "a code or zero point exceeds 2"), (UP, "NaN or infinite")):
        with pytest.raises(QuantkitError, match=rf"^{name}\.weight: .*{complaint}"):
            read_of(back, f"{name}.weight")


def test_the_folder_is_known_by_its_method_and_no_other(folder: Path, tmp_path: Path) -> None:
    assert registry.recognize(folder).name == "bitnet"
    change_settings(folder, quant_method="gptq")
    assert not EXPORTER.recognizes(folder)
    assert not EXPORTER.recognizes(tmp_path)


# ----------------------------------------------------------------------------------------------- transformers itself


@pytest.mark.engine("transformers")
@pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None or importlib.util.find_spec("accelerate") is None,
    reason="transformers loads BitNet folders with the package accelerate, not installed",
)
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch compiles BitNet's layers with a C++ compiler; none here")
def test_transformers_computes_what_the_reference_does_but_for_inputs_in_int8(tmp_path: Path) -> None:
    """Its own classes, with their rounding of inputs; with dense weights in bfloat16 and layers that stay dense."""
    runtime, ids = registry.runtime("transformers"), [1, 7, 42, 5, 90, 12, 3]
    folder = written(model(some_dense), tmp_path / "m")
    checkpoint = registry.open_checkpoint(folder)
    assert (runtime.refuses(checkpoint), runtime.arithmetic(checkpoint)) == (None, "int8 tokens")
    with registry.runtime("reference").open(folder) as oracle, runtime.open(folder) as session:
        exact, found = oracle.logits(ids), session.logits(ids)
        (rounded,) = oracle.predictions([ids], int8_run=PER_ROW)  # type: ignore[attr-defined]
    distance = np.linalg.norm(found - exact)
    assert 0.2 * np.linalg.norm(rounded.rounded - exact) < distance < 2 * np.linalg.norm(rounded.rounded - exact)
