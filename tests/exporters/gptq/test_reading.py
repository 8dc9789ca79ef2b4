"""GPTQ folders that others wrote: AutoGPTQ's old files, act-order, and settings and tensors that contradict."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.errors import (
    BadConfig,
    IncompleteCheckpoint,
    InconsistentCheckpoint,
    NonFiniteValues,
    QuantkitError,
    UnsupportedSpec,
)
from quantkit.exporters.gptq.exporter import EXPORTER
from quantkit.files.source_file import SourceFile
from quantkit.models.recognition import parse_config
from quantkit.models.spec import LINEAR_ROLES
from quantkit.protocols import ExportOptions
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView, TensorView
from tests.exporters.gptq.test_exporter import packed_down
from tests.support.memory import random_arrays, tiny_config
from tests.support.quantized_models import linears, quantized_model

LLAMA = tiny_config(
    architectures=["LlamaForCausalLM"], model_type="llama", tie_word_embeddings=False, num_hidden_layers=2,
    hidden_size=128, intermediate_size=128, scale_emb=None, scale_depth=None, dim_model_base=None,
)  # fmt: skip
Q, UP = "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.up_proj"


class Stranger:
    """A checkpoint as AutoGPTQ writes one, packed by the test's own packer; `index` orders every layer's columns."""

    def __init__(
        self, folder: Path, *, sym: bool = True, group_size: int = 64, index: np.ndarray | None = None,
        kind: str = "v1", scale_dtype: Any = np.float16,
    ) -> None:  # fmt: skip
        random = np.random.default_rng(3)
        spec = parse_config(LLAMA)
        self.folder, self.values, self.parts = folder, {}, {}
        tensors = {}
        for slot in spec.slots():
            if slot.role not in LINEAR_ROLES:
                tensors[slot.name] = random_arrays(spec)[slot.name].astype(np.float16)
                continue
            rows, cols = slot.shape
            groups = cols // group_size
            g_idx = (np.arange(cols) // group_size if index is None else index).astype(np.int32)
            codes = random.integers(0, 16, (rows, cols)).astype(np.uint8)
            zero = np.full((groups, rows), 8) if sym else random.integers(0, 16, (groups, rows))
            scale = random.normal(0, 0.01, (groups, rows)).astype(scale_dtype)
            wide = scale.astype(np.float32)
            self.values[slot.name] = (wide[g_idx] * (codes.T - zero[g_idx]).astype(np.float32)).T
            self.parts[slot.name] = (codes, zero.T, scale.T)
            module = slot.name.removesuffix(".weight")
            stored = packed_down(zero.T.astype(np.uint8), 4).T.view(np.uint32)
            if kind == "v1":  # GPTQModel's writer: whole words, borrows and all
                stored = stored - np.uint32(0x11111111)
            tensors |= {
                f"{module}.qweight": packed_down(codes.T, 4),
                f"{module}.qzeros": np.ascontiguousarray(stored.view(np.int32)),
                f"{module}.scales": scale,
                f"{module}.g_idx": g_idx,
                f"{module}.bias": np.zeros(rows, np.float16),
            }
        folder.mkdir()
        save_file(tensors, folder / f"gptq_model-4bit-{group_size}g.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(LLAMA))
        self.settings(
            bits=4, group_size=group_size, damp_percent=0.01, desc_act=index is not None, static_groups=False, sym=sym,
            true_sequential=True, model_name_or_path=None, model_file_base_name=None,
            **({} if kind == "v1" else {"checkpoint_format": "gptq_v2"}),
        )  # fmt: skip

    def settings(self, **settings: Any) -> None:
        (self.folder / "quantize_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_an_old_folder_with_settings_of_its_own_reads_to_its_codes(sym: bool, kind: str, tmp_path: Path) -> None:
    """Zero points of 0 included: v1 stores them as a borrow from the next field, which is added back."""
    stranger = Stranger(tmp_path / "theirs", sym=sym, kind=kind)
    assert registry.recognize(stranger.folder) is EXPORTER
    back = EXPORTER.read(stranger.folder)
    for name, (codes, zero, scale) in stranger.parts.items():
        tensor = back.weights[name].read()
        assert tensor.scheme == AffineGroups(bits=4, group_size=64, symmetric=sym)
        assert np.array_equal(tensor.codes, codes)
        assert np.array_equal(tensor.zero, zero)
        assert np.array_equal(tensor.scale, scale)
        assert np.array_equal(tensor.dequantized(), stranger.values[name])
    assert back.notes == ()


def test_bfloat16_scales_are_kept(tmp_path: Path) -> None:
    stranger = Stranger(tmp_path / "theirs", scale_dtype=ml_dtypes.bfloat16)
    tensor = EXPORTER.read(stranger.folder).weights[f"{Q}.weight"].read()
    assert tensor.scheme.scale_dtype == "bfloat16"
    assert np.array_equal(tensor.dequantized(), stranger.values[f"{Q}.weight"])


# ----------------------------------------------------------------------------------------------------------- act-order


@pytest.mark.parametrize(
    ("index", "group_size"),
    [
        (np.arange(128) // 64, 64),
        (1 - np.arange(128) // 64, 64),
        (np.arange(128) // 32 % 2, 32),
    ],
    ids=["as it lies", "groups in another order", "every other run of 32"],
)
def test_act_order_whose_runs_share_a_group_is_carried(index: np.ndarray, group_size: int, tmp_path: Path) -> None:
    stranger = Stranger(tmp_path / "theirs", sym=False, index=index)
    back = EXPORTER.read(stranger.folder)
    for name, values in stranger.values.items():
        view = back.weights[name]
        assert isinstance(view, QuantizedView)
        assert view.scheme == AffineGroups(bits=4, group_size=group_size, symmetric=False)
        assert np.array_equal(view.read().dequantized(), values)
        assert np.array_equal(view.read().codes, stranger.parts[name][0])


def test_scattered_columns_are_read_as_values_and_no_int4_container_takes_them(tmp_path: Path) -> None:
    index = np.random.default_rng(0).permutation(np.arange(128) // 64)
    stranger = Stranger(tmp_path / "theirs", sym=False, index=index)
    back = EXPORTER.read(stranger.folder)
    for name, values in stranger.values.items():
        view = back.weights[name]
        assert isinstance(view, TensorView)
        assert np.array_equal(view.read(), values)
        assert np.array_equal(view.fetch(5, 9), values[5:9])
    (note,) = back.notes
    assert "14 tensors (model.layers.0.self_attn.q_proj.weight ...)" in note
    publish(registry.exporter("hf").prepare(back, ExportOptions(type="f32")), tmp_path / "dense", inputs=back.inputs)
    dense = registry.open_checkpoint(tmp_path / "dense")
    assert np.array_equal(dense.weights[f"{UP}.weight"].read(), stranger.values[f"{UP}.weight"])
    for name in ("gptq", "awq", "compressed-tensors"):
        with pytest.raises(UnsupportedSpec, match="act-order without static groups"):
            registry.exporter(name).prepare(back, ExportOptions())


def test_scattered_columns_are_read_once_however_few_rows_are_asked_for_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = np.random.default_rng(0).permutation(np.arange(128) // 64)
    stranger = Stranger(tmp_path / "theirs", sym=False, index=index)
    back = EXPORTER.read(stranger.folder)
    counted = []
    read = SourceFile.read
    monkeypatch.setattr(SourceFile, "read", lambda *place: counted.append(place[2]) or read(*place))
    for name, values in stranger.values.items():
        view = back.weights[name]
        assert isinstance(view, TensorView)
        assert np.array_equal(np.concatenate(list(view.chunks(3 * 128))), values)
    stored = load_file(next(stranger.folder.glob("*.safetensors")))
    parts = ("qweight", "qzeros", "scales")
    assert sum(counted) == sum(tensor.nbytes for name, tensor in stored.items() if name.endswith(parts))


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Symmetric int4 in groups of 32 in every linear layer of an untied Llama, v1; the test may change it."""
    checkpoint = quantized_model(LLAMA, linears(AffineGroups(bits=4, group_size=32)))
    publish(EXPORTER.prepare(checkpoint, ExportOptions()), tmp_path / "folder")
    (tmp_path / "folder" / "quantize_config.json").unlink()
    return tmp_path / "folder"


def edit_settings(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config["quantization_config"])
    path.write_text(json.dumps(config))


def edit_tensors(folder: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    path = folder / "model.safetensors"
    tensors = dict(load_file(path))
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


BAD_SETTINGS: dict[str, tuple[dict[str, Any], type[QuantkitError], str]] = {
    "another layout": (
        {"checkpoint_format": "bitblas"}, UnsupportedSpec, "checkpoint_format 'bitblas'; only gptq and gptq_v2"),
    "five bits": ({"bits": 5}, UnsupportedSpec, "bits '5'"),
    "bits in words": ({"bits": "4"}, UnsupportedSpec, "bits '4'"),
    "no groups": ({"group_size": 0}, BadConfig, "group_size must be -1 or positive"),
    "an absurd group": ({"group_size": 1 << 60}, BadConfig, "group_size must be"),
    "wider words": ({"pack_dtype": "int64"}, UnsupportedSpec, "pack_dtype 'int64'"),
    "sym in words": ({"sym": "yes"}, BadConfig, "sym must be true or false"),
    "rules that are a list": ({"dynamic": ["-:x"]}, BadConfig, "dynamic must be an object"),
    "other bits than the tensors": (
        {"bits": 8}, InconsistentCheckpoint, "has int4 in groups of 32, the settings say int8 in groups of 32"),
    "other groups than the tensors": (
        {"group_size": 64}, InconsistentCheckpoint, "the settings say int4 in groups of 64"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "error", "complaint"), BAD_SETTINGS.values(), ids=BAD_SETTINGS.keys())
def test_settings_that_are_not_ours_to_read_are_refused(
    change: dict[str, Any], error: type[QuantkitError], complaint: str, folder: Path
) -> None:
    edit_settings(folder, lambda settings: settings.update(change))
    with pytest.raises(QuantkitError, match=complaint) as refusal:
        EXPORTER.read(folder)
    assert type(refusal.value) is error
    assert str(folder) in str(refusal.value)


BAD_TENSORS: dict[str, tuple[Callable[[dict[str, np.ndarray]], Any], type[QuantkitError], str]] = {
    "no codes": (lambda t: t.pop(f"{Q}.qweight"), IncompleteCheckpoint, rf"'{Q}\.weight' is missing"),
    "no scales": (lambda t: t.pop(f"{Q}.scales"), IncompleteCheckpoint, rf"{Q}\.scales is missing"),
    "no zero points": (lambda t: t.pop(f"{Q}.qzeros"), IncompleteCheckpoint, rf"{Q}\.qzeros is missing"),
    "codes of another width": (
        lambda t: t.update({f"{Q}.qweight": t[f"{Q}.qweight"][:, 1:].copy()}), InconsistentCheckpoint,
        r"qweight is int32 \[16, 127\]"),
    "codes of another height": (
        lambda t: t.update({f"{Q}.qweight": t[f"{Q}.qweight"][1:].copy()}), InconsistentCheckpoint,
        "are no weight of 128 columns"),
    "codes as floats": (
        lambda t: t.update({f"{Q}.qweight": t[f"{Q}.qweight"].astype(np.float32)}), InconsistentCheckpoint,
        "qweight is float32"),
    "scales as integers": (
        lambda t: t.update({f"{Q}.scales": np.ones((4, 128), np.int32)}), InconsistentCheckpoint, "scales int32"),
    "a dense weight as well": (
        lambda t: t.update({f"{Q}.weight": np.ones((128, 128), np.float32)}), InconsistentCheckpoint,
        f"{Q}.weight is there dense and quantized"),
    "a group that is not there": (
        lambda t: t.update({f"{Q}.g_idx": np.full(128, 4, np.int32)}), InconsistentCheckpoint, "values from 4 to 4"),
    "a negative group": (
        lambda t: t.update({f"{Q}.g_idx": np.full(128, -1, np.int32)}), InconsistentCheckpoint, "from -1"),
    "a bias": (
        lambda t: t.update({f"{Q}.bias": np.ones(128, np.float16)}), UnsupportedSpec, r"bias is not zero"),
    "a quantized embedding": (
        lambda t: t.update({"model.embed_tokens.qweight": t[f"{Q}.qweight"]}), UnsupportedSpec,
        "keeps embeddings dense"),
    "a stray part": (
        lambda t: t.update({f"{Q}.input_scale": np.ones(1, np.float32)}), InconsistentCheckpoint, "input_scale"),
    "no norm": (lambda t: t.pop("model.norm.weight"), IncompleteCheckpoint, "'model.norm.weight' is missing"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "error", "complaint"), BAD_TENSORS.values(), ids=BAD_TENSORS.keys())
def test_tensors_that_contradict_the_settings_are_refused(
    change: Callable[[dict[str, np.ndarray]], Any], error: type[QuantkitError], complaint: str, folder: Path
) -> None:
    edit_tensors(folder, change)
    with pytest.raises(QuantkitError, match=complaint) as refusal:
        EXPORTER.read(folder)
    assert type(refusal.value) is error


def test_zero_points_of_the_other_version_are_noticed(folder: Path) -> None:
    edit_settings(folder, lambda settings: settings.update(checkpoint_format="gptq_v2"))
    checkpoint = EXPORTER.read(folder)
    with pytest.raises(InconsistentCheckpoint, match=rf"^{Q}\.weight: the settings say sym") as refusal:
        checkpoint.weights[f"{Q}.weight"].read()
    assert "checkpoint_format may be wrong" in str(refusal.value.hint)


def test_a_missing_group_index_is_fine_unless_columns_are_in_another_order(folder: Path) -> None:
    wanted = EXPORTER.read(folder).weights[f"{Q}.weight"].read()
    edit_tensors(folder, lambda t: [t.pop(name) for name in list(t) if name.endswith("g_idx")])
    found = EXPORTER.read(folder).weights[f"{Q}.weight"].read()
    assert np.array_equal(found.dequantized(), wanted.dequantized())
    edit_settings(folder, lambda settings: settings.update(desc_act=True))
    with pytest.raises(IncompleteCheckpoint, match="g_idx is missing"):
        EXPORTER.read(folder)


def test_a_quantized_head_is_read(folder: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        del tensors["lm_head.weight"]
        for part, rows in (("qweight", 16), ("qzeros", 4), ("scales", 4)):
            tensors[f"lm_head.{part}"] = np.ones((rows, {"qzeros": 12}.get(part, 96)), tensors[f"{Q}.{part}"].dtype)
        tensors["lm_head.qzeros"][:] = 0x77777777
        tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:96].copy()

    edit_tensors(folder, change)
    config = json.loads((folder / "config.json").read_text())
    config["vocab_size"] = 96
    (folder / "config.json").write_text(json.dumps(config))
    head = EXPORTER.read(folder).weights["lm_head.weight"]
    assert isinstance(head, QuantizedView)
    assert head.read().codes[0].tolist() == [1, 0, 0, 0, 0, 0, 0, 0] * 16


def test_a_scale_that_is_not_a_number_is_refused_by_the_tensor_that_holds_it(folder: Path) -> None:
    edit_tensors(folder, lambda t: t.update({f"{Q}.scales": np.full((4, 128), np.nan, np.float16)}))
    checkpoint = EXPORTER.read(folder)
    with pytest.raises(NonFiniteValues, match=rf"^{Q}\.weight: "):
        checkpoint.weights[f"{Q}.weight"].read()


@pytest.mark.parametrize(
    "settings",
    [
        {"quant_method": "awq", "bits": 4},
        {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"},
        {"quant_method": "gptq", "bits": 4, "is_marlin_format": True},
        ["gptq"],
    ],
)
def test_other_folders_are_not_recognized(settings: Any, tmp_path: Path) -> None:
    assert not EXPORTER.recognizes(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "quantization_config": settings}))
    assert not EXPORTER.recognizes(tmp_path)


def test_settings_that_name_gptq_over_a_dense_model_are_refused(folder: Path) -> None:
    def dense(tensors: dict[str, np.ndarray]) -> None:
        arrays = random_arrays(parse_config(LLAMA))
        tensors.clear()
        tensors.update(arrays)

    edit_tensors(folder, dense)
    with pytest.raises(InconsistentCheckpoint, match="no weight is quantized"):
        EXPORTER.read(folder)
