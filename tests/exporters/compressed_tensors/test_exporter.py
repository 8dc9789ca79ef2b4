"""What compressed-tensors folders look like when we write them: literal bytes, and the package itself as the judge."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from quantkit.artifacts.publishing import publish
from quantkit.errors import BadOption, NonFiniteValues, UnsupportedSpec
from quantkit.exporters.compressed_tensors.exporter import EXPORTER
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import LINEAR_ROLES, Role, TensorSlot
from quantkit.protocols import ExportOptions
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.scheme import SCALE_DTYPES
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView
from tests.support.memory import memory_checkpoint, tiny_config
from tests.support.quantized_models import BF16, Choice, linears, quantized_model

MINICPM = tiny_config()
LLAMA = {**MINICPM, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": False}
SYM4, ASYM4 = AffineGroups(bits=4, group_size=32), AffineGroups(bits=4, group_size=32, symmetric=False)


def mixed(slot: TensorSlot) -> AffineGroups | None:
    """Another grid for every kind of layer: all widths, both symmetries, groups and rows, one head, some dense."""
    return {
        Role.Q: AffineGroups(bits=2, group_size=32),
        Role.K: AffineGroups(bits=3, group_size=16, symmetric=False),
        Role.V: AffineGroups(bits=5, group_size=-1),
        Role.O: AffineGroups(bits=6, group_size=64, scale_dtype="bfloat16"),
        Role.GATE: AffineGroups(bits=7, group_size=-1, symmetric=False),
        Role.UP: AffineGroups(bits=8, group_size=32, symmetric=False, scale_dtype="float32"),
        Role.LM_HEAD: AffineGroups(bits=4, group_size=32),
    }.get(slot.role)


def written(checkpoint: Checkpoint, folder: Path, arch: str = "native") -> Path:
    publish(EXPORTER.prepare(checkpoint, ExportOptions(arch=arch)), folder)
    return folder


def scheme_of(config: dict[str, Any], module: str) -> dict[str, Any]:
    """The group that names `module`, or the one that takes every Linear."""
    groups = config["quantization_config"]["config_groups"].values()
    exact = [group for group in groups if module in group["targets"]]
    (group,) = exact or [group for group in groups if "Linear" in group["targets"]]
    return group


# -------------------------------------------------------------------------------------------------------- the layout


@pytest.fixture
def smallest(tmp_path: Path) -> Path:
    """One block of width 8; q_proj asymmetric int4, one scale per row: code j of row i is (i + j) % 16, zero i + 1."""
    config = tiny_config(
        vocab_size=4, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, dim_model_base=8,
    )  # fmt: skip
    rows, cols = np.indices((8, 8))
    tensor = QuantizedTensor(
        AffineGroups(bits=4, group_size=-1, symmetric=False),
        ((rows + cols) % 16).astype(np.uint8),
        {
            "scale": np.array([[0.5], [1], [-2], [0], [1], [1], [1], [65504]], np.float16),
            "zero": np.arange(1, 9, dtype=np.uint8)[:, None],
        },
    )
    return written(
        quantized_model(config, lambda slot: None, replaced={"model.layers.0.self_attn.q_proj.weight": tensor}),
        tmp_path / "s",
    )


def test_the_smallest_module_has_the_literal_bytes(smallest: Path) -> None:
    tensors = load_file(smallest / "model.safetensors")
    parts = {name.rpartition(".")[2]: value for name, value in tensors.items() if ".q_proj." in name}
    assert {name: (value.dtype.name, value.shape) for name, value in parts.items()} == {
        "weight_shape": ("int64", (2,)),
        "weight_packed": ("int32", (8, 1)),
        "weight_zero_point": ("int32", (1, 1)),
        "weight_scale": ("float16", (8, 1)),
    }
    assert parts["weight_shape"].tobytes().hex() == "08000000000000000800000000000000"
    assert parts["weight_packed"].tobytes().hex() == (
        "10325476" "21436587" "32547698" "436587a9" "547698ba" "6587a9cb" "7698badc" "87a9cbed"
    )  # fmt: skip
    assert parts["weight_zero_point"].tobytes().hex() == "21436587"
    assert parts["weight_scale"].tobytes().hex() == "0038" "003c" "00c0" "0000" "003c" "003c" "003c" "ff7b"  # fmt: skip


def test_tensors_lie_in_the_order_of_the_forward_pass_with_wide_elements_first(smallest: Path) -> None:
    data = (smallest / "model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header.pop("__metadata__") == {"format": "pt"}
    block = "model.layers.0"
    assert sorted(header, key=lambda name: header[name]["data_offsets"]) == [
        "model.embed_tokens.weight",
        f"{block}.input_layernorm.weight",
        *(f"{block}.self_attn.q_proj.weight_{part}" for part in ("shape", "packed", "zero_point", "scale")),
        *(f"{block}.self_attn.{name}_proj.weight" for name in "kvo"),
        f"{block}.post_attention_layernorm.weight",
        *(f"{block}.mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
        "model.norm.weight",
    ]


def test_a_block_is_one_unit_and_reads_only_its_own_weights() -> None:
    read: list[str] = []

    def watched(view: QuantizedView) -> Callable[[], QuantizedTensor]:
        return lambda: read.append(view.name) or view.read()  # type: ignore[func-returns-value]

    checkpoint = quantized_model(LLAMA, linears(SYM4))
    views = {
        name: replace(view, read=watched(view)) if isinstance(view, QuantizedView) else view
        for name, view in checkpoint.weights.items()
    }
    planned = EXPORTER.prepare(replace(checkpoint, weights=views), ExportOptions())
    assert read == []
    (weights,) = (file for file in planned.files if file.name == "model.safetensors")
    assert [unit.name for unit in weights.units[1:]] == [
        "model.embed_tokens.weight", *(f"model.layers.{i}" for i in range(3)), "model.norm.weight", "lm_head.weight",
    ]  # fmt: skip
    block = weights.units[3]
    assert sum(len(np.asarray(buffer).tobytes()) for buffer in block.produce()) == block.size
    assert read == [name for name in views if name.startswith("model.layers.1.") and "norm" not in name]


def test_config_json_says_every_default_and_the_dtype_of_the_dense_weights(smallest: Path) -> None:
    config = json.loads((smallest / "config.json").read_text())
    assert config["tie_word_embeddings"] is True
    assert config["rope_theta"] == 10000.0
    assert config["torch_dtype"] == "bfloat16"
    assert config["scale_emb"] == 12


# ---------------------------------------------------------------------------------------------- the package as judge


@pytest.fixture(scope="module")
def package() -> Any:
    pytest.importorskip("torch")
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import pack_quantized  # noqa: PLC0415 - heavy

    return pack_quantized.PackedQuantizationCompressor


@pytest.mark.parametrize("choose", [linears(SYM4), linears(AffineGroups(bits=8, group_size=-1)), mixed])
def test_the_package_accepts_our_config_and_would_write_it_the_same(
    package: Any, choose: Choice, tmp_path: Path
) -> None:
    from compressed_tensors.quantization import QuantizationConfig  # noqa: PLC0415 - heavy

    config = json.loads((written(quantized_model(LLAMA, choose), tmp_path / "m") / "config.json").read_text())
    ours = config["quantization_config"]
    theirs = QuantizationConfig.model_validate(ours).model_dump(mode="json")
    around = {"version", "sparsity_config", "transform_config"}  # put around it when the package writes config.json
    assert {key: value for key, value in ours.items() if key not in around} == {
        key: value for key, value in theirs.items() if key != "moe_sparsity_config"
    }


@pytest.mark.parametrize("choose", [linears(SYM4), linears(ASYM4), mixed], ids=["sym", "asym", "mixed"])
def test_the_package_decompresses_our_folder_to_the_same_values_bit_for_bit(
    package: Any, choose: Choice, tmp_path: Path
) -> None:
    from compressed_tensors.quantization import QuantizationScheme  # noqa: PLC0415 - heavy
    from safetensors.torch import load_file as load_torch  # noqa: PLC0415 - heavy

    checkpoint = quantized_model(LLAMA, choose)
    folder = written(checkpoint, tmp_path / "m")
    tensors, config = load_torch(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    compared = 0
    for name, view in checkpoint.weights.items():
        if not isinstance(view, QuantizedView):
            continue
        module = name.removesuffix(".weight")
        state = {key.rpartition(".")[2]: value for key, value in tensors.items() if key.startswith(f"{module}.")}
        scheme = QuantizationScheme.model_validate(scheme_of(config, module))
        wanted = view.read().dequantized()
        wide = package.decompress({**state, "weight_scale": state["weight_scale"].float()}, scheme)["weight"]
        assert np.array_equal(wide.numpy().view(np.uint32), wanted.view(np.uint32)), name
        narrow = package.decompress(state, scheme)["weight"]  # computes and rounds in the dtype of the scale
        rounded = wanted.astype(SCALE_DTYPES[view.scheme.scale_dtype])
        assert np.array_equal(narrow.float().numpy(), rounded.astype(np.float32)), name
        compared += 1
    assert compared == sum(choose(slot) is not None for slot in checkpoint.spec.slots())


@pytest.mark.engine("transformers")
def test_transformers_loads_a_folded_folder_of_several_grids_to_the_same_logits(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("compressed_tensors")
    from quantkit.models.torch_model import MiniCPM  # noqa: PLC0415 - imports torch

    grids = {Role.Q: SYM4, Role.O: AffineGroups(bits=8, group_size=-1), Role.UP: AffineGroups(bits=3, group_size=32)}
    folder = written(quantized_model(MINICPM, lambda slot: grids.get(slot.role)), tmp_path / "m", arch="llama")
    engine = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    back = EXPORTER.read(folder)
    ours = MiniCPM(back.spec)
    weights = {
        name: view.read().dequantized() if isinstance(view, QuantizedView) else view.read().astype(np.float32)
        for name, view in back.weights.items()
    }
    ours.load_state_dict({name: torch.from_numpy(values) for name, values in weights.items()})
    ids = torch.tensor([[1, 7, 42, 5, 90]])
    with torch.no_grad():
        wanted, found = ours(ids), engine(ids).logits
    assert (found - wanted).abs().max() < 32 * np.finfo(np.float32).eps * wanted.abs().max()


# ----------------------------------------------------------------------------------------------------- what is written


def test_a_model_without_quantized_weights_is_refused_with_the_way_out() -> None:
    with pytest.raises(UnsupportedSpec, match="compressed-tensors holds integer weights") as refusal:
        EXPORTER.prepare(memory_checkpoint(MINICPM), ExportOptions())
    assert "export hf" in str(refusal.value.hint)


def test_an_unknown_type_or_architecture_is_refused() -> None:
    checkpoint = quantized_model(MINICPM, linears(SYM4))
    with pytest.raises(BadOption, match="no type 'q4_0'"):
        EXPORTER.prepare(checkpoint, ExportOptions(type="q4_0"))
    with pytest.raises(BadOption, match="unknown architecture 'qwen'"):
        EXPORTER.prepare(checkpoint, ExportOptions(arch="qwen"))


def test_a_dense_weight_that_is_not_finite_stops_the_writing_by_name(tmp_path: Path) -> None:
    arrays = {name: view.read() for name, view in quantized_model(MINICPM, linears(SYM4)).weights.items()}
    arrays["model.norm.weight"][3] = np.nan
    with pytest.raises(NonFiniteValues, match=r"model\.norm\.weight.* flat index 3"):
        written(memory_checkpoint(MINICPM, arrays), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_folding_writes_a_llama_with_dense_weights_as_narrow_as_the_source(tmp_path: Path) -> None:
    folder = written(quantized_model(MINICPM, linears(SYM4)), tmp_path / "llama", arch="llama")
    config = json.loads((folder / "config.json").read_text())
    assert (config["architectures"], config["torch_dtype"]) == (["LlamaForCausalLM"], "bfloat16")
    assert config["quantization_config"]["ignore"] == ["lm_head"]
    tensors = load_file(folder / "model.safetensors")
    assert tensors["lm_head.weight"].dtype == tensors["model.embed_tokens.weight"].dtype == BF16
    assert EXPORTER.read(folder).spec.architecture == "llama"


FIRST_BLOCK = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]


@pytest.mark.parametrize(
    ("choose", "targets", "ignore"),
    [
        (linears(SYM4), ["Linear"], ["lm_head"]),
        (
            lambda slot: SYM4 if slot.role is not Role.EMBED and len(slot.shape) == 2 else None,
            ["Linear", "lm_head"],
            [],
        ),
        (
            lambda slot: SYM4 if slot.role in LINEAR_ROLES and slot.layer else None,
            ["Linear"],
            [*(f"model.layers.0.{name}" for name in FIRST_BLOCK), "lm_head"],
        ),
    ],
    ids=["linears", "head too", "first block dense"],
)
def test_targets_and_ignore_list_name_exactly_what_is_quantized(
    choose: Choice, targets: list[str], ignore: list[str], tmp_path: Path
) -> None:
    config = json.loads((written(quantized_model(LLAMA, choose), tmp_path / "m") / "config.json").read_text())
    quantization = config["quantization_config"]
    assert [group["targets"] for group in quantization["config_groups"].values()] == [targets]
    assert quantization["ignore"] == ignore


def test_several_grids_become_several_groups_that_name_their_modules(tmp_path: Path) -> None:
    config = json.loads((written(quantized_model(LLAMA, mixed), tmp_path / "m") / "config.json").read_text())
    groups = config["quantization_config"]["config_groups"]
    assert [group["weights"]["num_bits"] for group in groups.values()] == [2, 3, 5, 6, 7, 8, 4]
    assert groups["group_2"]["weights"] == {
        "dynamic": False, "group_size": None, "num_bits": 5, "strategy": "channel", "symmetric": True, "type": "int",
    }  # fmt: skip
    assert groups["group_6"]["targets"] == ["lm_head"]
    assert config["quantization_config"]["ignore"] == [
        f"model.layers.{layer}.mlp.down_proj" for layer in range(3)
    ]  # fmt: skip
