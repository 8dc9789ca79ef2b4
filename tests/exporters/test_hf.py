from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.errors import BadOption, IncompleteCheckpoint, NonFiniteValues, UnsupportedModel, ValueOutOfRange
from quantkit.exporters._hf_config import native_config, with_dtype
from quantkit.files.source_file import SourceFile
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.recognition import parse_config
from quantkit.models.spec import LINEAR_ROLES, architecture
from quantkit.models.torch_model import MiniCPM
from quantkit.protocols import ExportOptions
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView
from tests.support.memory import memory_checkpoint, random_arrays
from tests.support.tiny import tiny_config, write_tiny_checkpoint

HF = registry.exporter("hf")
TORCH = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
NAMES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
CONFIG = "config.json"


def exported(checkpoint: Checkpoint, out: Path, type: str | None = None, arch: str = "native") -> Path:  # noqa: A002
    publish(HF.prepare(checkpoint, ExportOptions(type=type, arch=arch)), out, inputs=checkpoint.inputs)
    return out


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text())
    return config


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """As the `safetensors` package reads them."""
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def quantized_checkpoint() -> Checkpoint:
    """A tiny model whose linear weights are random 4-bit codes with float16 scales."""
    config = tiny_config(hidden=64, intermediate=96, heads=2, kv_heads=1, vocab=32)
    spec = parse_config(config)
    arrays: dict[str, np.ndarray | QuantizedTensor] = dict(random_arrays(spec))
    grid = AffineGroups(bits=4, group_size=32, symmetric=False)
    random = np.random.default_rng(0)
    for slot in spec.slots():
        if slot.role in LINEAR_ROLES:
            rows, cols = slot.shape
            arrays[slot.name] = QuantizedTensor(
                grid,
                random.integers(0, 16, (rows, cols)).astype(np.uint8),
                {
                    "scale": random.normal(0, 0.01, (rows, cols // 32)).astype(np.float16),
                    "zero": random.integers(0, 16, (rows, cols // 32)).astype(np.uint8),
                },
            )
    return memory_checkpoint(config, arrays)


@pytest.mark.parametrize("source", ["bf16", "f16", "f32"])
@pytest.mark.parametrize("target", ["bf16", "f16", "f32"])
def test_every_weight_is_rounded_as_torch_rounds_it(source: str, target: str, tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "in", dtype=source)
    out = exported(HF.read(folder), tmp_path / "out", target)
    before, after = weights_of(folder), weights_of(out)
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert after[name].dtype == TORCH[target]
        assert torch.equal(after[name], tensor.to(TORCH[target])), name
    assert config_of(out)["torch_dtype"] == NAMES[target]


def test_without_a_type_the_bits_of_every_weight_are_kept(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "in", shards=1)
    tensors = weights_of(folder)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float() + 1e-6
    save_file(tensors, folder / "model.safetensors")
    out = exported(HF.read(folder), tmp_path / "out")
    after = weights_of(out)
    assert {n: (t.dtype, t.flatten().tolist()) for n, t in after.items()} == {
        n: (t.dtype, t.flatten().tolist()) for n, t in tensors.items()
    }


def test_the_native_config_speaks_the_silent_defaults_out(tiny_checkpoint: Path, tmp_path: Path) -> None:
    before = config_of(tiny_checkpoint)
    assert "tie_word_embeddings" not in before
    assert "rope_theta" not in before
    after = config_of(exported(HF.read(tiny_checkpoint), tmp_path / "out", "f16"))
    assert after == {
        **before,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "auto_map": {"AutoConfig": "configuration_minicpm.MiniCPMConfig"},
        "head_dim": 64,
        "mlp_bias": False,
        "pad_token_id": None,
        "tie_word_embeddings": True,
        "rope_theta": 10000.0,
        "torch_dtype": "float16",
    }
    assert list(after) == sorted(after)


def test_what_describes_the_storage_of_the_source_is_left_out() -> None:
    checkpoint = memory_checkpoint({**tiny_config(), "quantization_config": {"quant_method": "x"}, "dtype": "float32"})
    config = with_dtype(native_config(checkpoint), np.dtype(ml_dtypes.bfloat16))
    assert "quantization_config" not in config
    assert config["torch_dtype"] == "bfloat16"
    assert "dtype" not in config


def test_the_folded_config_describes_the_folded_model_and_nothing_of_the_family(tiny_checkpoint: Path) -> None:
    source = HF.read(tiny_checkpoint)
    config = architecture("llama").config(source.spec.folded(), source.config)
    assert parse_config(config) == source.spec.folded()
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["tie_word_embeddings"] is False
    assert config["rope_theta"] == 10000.0
    assert config["head_dim"] == 64
    assert config["eos_token_id"] == [2, 292]
    assert config["rope_scaling"]["long_factor"] == source.config["rope_scaling"]["long_factor"]
    for key in ("auto_map", "scale_emb", "scale_depth", "dim_model_base"):
        assert key not in config


@pytest.mark.parametrize(
    "overrides", [{"rope_scaling": None}, {"head_dim": 32}, {"eos_token_id": 2}, {"rope_theta": 5e5}]
)
def test_folded_configs_keep_what_the_source_says(overrides: dict[str, Any], tmp_path: Path) -> None:
    factors = [1.0] * (overrides.get("head_dim", 64) // 2)
    scaling = {"type": "su", "short_factor": factors, "long_factor": factors, "original_max_position_embeddings": 512}
    folder = write_tiny_checkpoint(tmp_path / "in", config_overrides={"rope_scaling": scaling, **overrides})
    spec = HF.read(folder).spec.folded()
    assert parse_config(architecture("llama").config(spec, {})) == spec


def test_the_folded_weights_are_products_rounded_once(tiny_checkpoint: Path, tmp_path: Path) -> None:
    source = HF.read(tiny_checkpoint)
    before = weights_of(tiny_checkpoint)
    after = weights_of(exported(source, tmp_path / "out", "f32", "llama"))
    embedding, down = "model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight"
    factor = np.float32(12 * 1 / (1.4 / 2**0.5))
    assert torch.equal(after[embedding], before[embedding].float() * factor)
    assert torch.equal(after["lm_head.weight"], before[embedding].float() / 4)
    assert torch.equal(after[down], before[down].float())
    same = "model.layers.0.mlp.gate_proj.weight"
    assert torch.equal(after[same], before[same].float())
    rounded = weights_of(exported(source, tmp_path / "bf16", None, "llama"))
    assert torch.equal(rounded[embedding], (before[embedding].float() * factor).bfloat16())
    assert {tensor.dtype for tensor in rounded.values()} == {torch.bfloat16}


@pytest.mark.engine("transformers")
def test_transformers_runs_the_folded_folder_to_the_logits_of_the_original(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    source = HF.read(tiny_checkpoint)
    model = MiniCPM(source.spec)
    model.load_state_dict({name: tensor.float() for name, tensor in weights_of(tiny_checkpoint).items()})
    ids = np.random.default_rng(0).integers(0, 300, 40).tolist()
    with torch.no_grad():
        expected = torch.log_softmax(model(torch.tensor([ids]))[0], -1).numpy()
    out = exported(source, tmp_path / "out", "f32", "llama")
    with registry.runtime("transformers").open(out) as session:
        logits = torch.log_softmax(torch.from_numpy(session.logits(ids)), -1).numpy()
    assert expected.std() > 0.1  # the logits say something
    assert np.abs(logits - expected).max() < 1e-4
    # A folder that is not folded, but claims to be a Llama, is far off: the comparison can fail.
    unfolded = exported(source, tmp_path / "unfolded", "f32")
    config = {**config_of(out), "tie_word_embeddings": True}
    (unfolded / CONFIG).write_text(json.dumps(config))
    with registry.runtime("transformers").open(unfolded) as session:
        logits = torch.log_softmax(torch.from_numpy(session.logits(ids)), -1).numpy()
    assert np.abs(logits - expected).max() > 0.1


@pytest.mark.parametrize("type_name", [None, "bf16", "f16", "f32"])
def test_quantized_weights_are_written_as_their_values_rounded_once(type_name: str | None, tmp_path: Path) -> None:
    checkpoint = quantized_checkpoint()
    after = weights_of(exported(checkpoint, tmp_path / "out", type_name))
    target = TORCH[type_name or "bf16"]
    for name, weight in checkpoint.weights.items():
        values = weight.read().dequantized() if isinstance(weight, QuantizedView) else weight.read()
        assert torch.equal(after[name], torch.from_numpy(values).to(target)), name


def test_the_files_of_the_tokenizer_are_carried_along(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.model", "chat_template.jinja"):
        (tiny_checkpoint / name).write_bytes(name.encode() * 3)
    generation = b'{"eos_token_id": [292, 2], "top_p": 0.5}'
    (tiny_checkpoint / "generation_config.json").write_bytes(generation)
    (tiny_checkpoint / "modeling_minicpm.py").write_text("code")
    out = exported(HF.read(tiny_checkpoint), tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "configuration_minicpm.py",
        "generation_config.json",
        "model.safetensors",
        "quantkit.json",
        "tokenizer.model",
    ]
    assert (out / "tokenizer.model").read_bytes() == b"tokenizer.model" * 3
    assert (out / "generation_config.json").read_bytes() == generation


def test_the_plan_is_exact_and_reads_no_tensor(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = HF.read(tiny_checkpoint)
    read = SourceFile.read

    def no_weights(file: SourceFile, offset: int, size: int) -> np.ndarray:
        assert file.path not in checkpoint.inputs
        return read(file, offset, size)

    with monkeypatch.context() as patch:
        patch.setattr(SourceFile, "read", no_weights)
        planned = HF.prepare(checkpoint, ExportOptions(type="f16", arch="llama"))
    publish(planned, tmp_path / "out", inputs=checkpoint.inputs)
    assert {file.name: file.size for file in planned.files} == {
        path.name: path.stat().st_size for path in (tmp_path / "out").iterdir() if path.name != "quantkit.json"
    }
    assert {tensor.type for tensor in planned.tensors} == {"f16"}
    assert [tensor.name for tensor in planned.tensors] == [slot.name for slot in checkpoint.spec.folded().slots()]


@pytest.mark.parametrize(
    ("value", "type_name", "error", "words"),
    [
        (np.nan, None, NonFiniteValues, "1 NaN"),
        (np.nan, "f16", NonFiniteValues, "1 NaN"),
        (np.inf, "f32", NonFiniteValues, "1 NaN or infinite"),
        (1e5, "f16", ValueOutOfRange, "65504"),
    ],
)
def test_a_value_that_cannot_be_written_stops_with_its_tensor_and_leaves_nothing(
    value: float, type_name: str | None, error: type[Exception], words: str, tmp_path: Path
) -> None:
    folder = write_tiny_checkpoint(tmp_path / "in", shards=1)
    tensors = weights_of(folder)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][3, 7] = value
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(error) as caught:
        exported(HF.read(folder), tmp_path / "out", type_name)
    message = str(caught.value)
    assert name in message
    assert words in message
    assert f"flat index {3 * 256 + 7}" in message
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_unknown_types_and_architectures_are_refused(tiny_checkpoint: Path) -> None:
    checkpoint = HF.read(tiny_checkpoint)
    with pytest.raises(BadOption, match="no type 'q4_0'"):
        HF.prepare(checkpoint, ExportOptions(type="q4_0"))
    with pytest.raises(BadOption, match="'mistral'"):
        HF.prepare(checkpoint, ExportOptions(arch="mistral"))


def test_dense_folders_are_recognized_and_others_are_not(tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert HF.recognizes(tiny_checkpoint)
    assert registry.recognize(tiny_checkpoint).name == "hf"
    assert not HF.recognizes(tiny_checkpoint / CONFIG)
    assert not HF.recognizes(tmp_path / "none")
    assert not HF.recognizes(tmp_path)
    config = config_of(tiny_checkpoint)
    (tiny_checkpoint / CONFIG).write_text(json.dumps({**config, "quantization_config": {"quant_method": "awq"}}))
    assert not HF.recognizes(tiny_checkpoint)
    with pytest.raises(UnsupportedModel, match="quantized"):
        HF.read(tiny_checkpoint)


def test_a_folder_with_a_bad_config_or_only_pickles_is_recognized_so_that_its_fault_is_told(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (tiny_checkpoint / CONFIG).unlink()
    with pytest.raises(IncompleteCheckpoint, match=r"config\.json is missing"):
        registry.open_checkpoint(tiny_checkpoint)
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / CONFIG).write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    with pytest.raises(IncompleteCheckpoint, match=r"no \.safetensors file; its 1 pickle files"):
        registry.open_checkpoint(folder)
