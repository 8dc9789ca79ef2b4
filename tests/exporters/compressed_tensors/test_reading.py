"""Folders of others: what the package writes is read exactly, everything doubtful is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from quantkit.artifacts.publishing import publish
from quantkit.errors import (
    BadConfig,
    IncompleteCheckpoint,
    InconsistentCheckpoint,
    NonFiniteValues,
    QuantkitError,
    UnsupportedSpec,
)
from quantkit.exporters.compressed_tensors.exporter import EXPORTER
from quantkit.models.recognition import parse_config
from quantkit.models.spec import LINEAR_ROLES
from quantkit.protocols import ExportOptions
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView
from tests.support.memory import random_arrays, tiny_config
from tests.support.quantized_models import linears, quantized_model

LLAMA = tiny_config(architectures=["LlamaForCausalLM"], model_type="llama", tie_word_embeddings=False)
ASYM4 = AffineGroups(bits=4, group_size=32, symmetric=False)
Q, UP = "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.up_proj"


def package_folder(folder: Path, symmetric: bool) -> tuple[Path, dict[str, dict[str, np.ndarray]]]:
    """A Llama that the package quantized and packed, with bfloat16 scales and a config as llm-compressor writes it.

    Returns the folder and the package's own signed codes and zero points of every linear layer.
    """
    import torch  # noqa: PLC0415 - heavy
    from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor  # noqa: PLC0415
    from compressed_tensors.quantization import QuantizationScheme  # noqa: PLC0415
    from compressed_tensors.quantization.lifecycle.forward import quantize  # noqa: PLC0415
    from compressed_tensors.quantization.utils import calculate_qparams  # noqa: PLC0415
    from safetensors.torch import save_file as save_torch  # noqa: PLC0415

    group: dict[str, Any] = {
        "targets": [r"re:.*self_attn\.(q|k|v|o)_proj$", "re:.*mlp.*_proj"],
        "weights": {
            "num_bits": 4, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": 32,
            "actorder": "static", "observer": "minmax", "observer_kwargs": {}, "dynamic": False,
        },
        "input_activations": None,
        "output_activations": None,
    }  # fmt: skip
    scheme = QuantizationScheme.model_validate(group)
    spec = parse_config(LLAMA)
    tensors, chosen = {}, {}
    for slot in spec.slots():
        weight = torch.from_numpy(random_arrays(spec)[slot.name]).to(torch.bfloat16)
        module = slot.name.removesuffix(".weight")
        if slot.role not in LINEAR_ROLES:
            tensors[slot.name] = weight
            continue
        grouped = weight.unflatten(-1, (-1, 32))
        scale, zero = calculate_qparams(grouped.amin(-1), grouped.amax(-1), scheme.weights)
        codes = quantize(weight, scale, zero, scheme.weights, dtype=torch.int8)
        chosen[slot.name] = {"codes": codes.numpy(), "zero": zero.numpy(), "scale": scale.float().numpy()}
        state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}
        packed = PackedQuantizationCompressor.compress(state, scheme)
        tensors |= {f"{module}.{part}": value.contiguous() for part, value in packed.items()}
    folder.mkdir()
    save_torch(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    quantization = {
        "config_groups": {"group_0": group}, "format": "pack-quantized", "global_compression_ratio": 1.5,
        "ignore": ["lm_head"], "kv_cache_scheme": None, "quant_method": "compressed-tensors",
        "quantization_status": "compressed", "sparsity_config": {}, "transform_config": {}, "version": "0.17.0",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({**LLAMA, "quantization_config": quantization}))
    return folder, chosen


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_folder_that_the_package_wrote_reads_to_its_codes_zeros_and_scales(symmetric: bool, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("compressed_tensors")
    folder, chosen = package_folder(tmp_path / "theirs", symmetric)
    assert EXPORTER.recognizes(folder)
    weights = EXPORTER.read(folder).weights
    assert sum(isinstance(view, QuantizedView) for view in weights.values()) == len(chosen) == 21
    for name, wanted in chosen.items():
        found = weights[name].read()
        assert found.scheme == AffineGroups(bits=4, group_size=32, symmetric=symmetric, scale_dtype="bfloat16")
        assert np.array_equal(found.codes.astype(int) - 8, wanted["codes"])
        assert np.array_equal(found.zero.astype(int) - 8, wanted["zero"])
        assert np.array_equal(found.scale.astype(np.float32), wanted["scale"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Asymmetric int4 in groups of 32 in every linear layer of an untied Llama; the test may change it."""
    publish(EXPORTER.prepare(quantized_model(LLAMA, linears(ASYM4)), ExportOptions()), tmp_path / "folder")
    return tmp_path / "folder"


def edit_config(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config["quantization_config"])
    path.write_text(json.dumps(config))


def edit_tensors(folder: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    path = folder / "model.safetensors"
    tensors = dict(load_file(path))
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def weights_of(config: dict[str, Any]) -> dict[str, Any]:
    args: dict[str, Any] = config["config_groups"]["group_0"]["weights"]
    return args


def test_an_exact_name_wins_over_an_expression_and_that_over_a_class(folder: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        group = config["config_groups"]["group_0"]
        other = {**group, "targets": ["Linear"], "weights": {**group["weights"], "num_bits": 8}}
        exact = {**group, "targets": [Q]}
        loose = {**group, "targets": [r"re:model\.layers\.[0-2]\..*_proj$"]}
        config["config_groups"] = {"a": other, "b": loose, "c": exact}

    edit_config(folder, change)
    assert {view.scheme for view in EXPORTER.read(folder).weights.values() if isinstance(view, QuantizedView)} == {
        ASYM4
    }


@pytest.mark.parametrize("ignore", [["lm_head"], ["re:.*lm_head"], ["re:lm_head$", "Embedding"]])
def test_what_is_ignored_stays_dense_however_it_is_named(folder: Path, ignore: list[str]) -> None:
    edit_config(folder, lambda config: config.update(ignore=ignore))
    assert not isinstance(EXPORTER.read(folder).weights["lm_head.weight"], QuantizedView)


BAD_CONFIGS: dict[str, tuple[Callable[[dict[str, Any]], Any], type[QuantkitError], str]] = {
    "another format": (lambda c: c.update(format="marlin-24"), UnsupportedSpec, "format 'marlin-24'"),
    "a group of another format": (
        lambda c: c["config_groups"]["group_0"].update(format="int-quantized"), UnsupportedSpec, "'int-quantized'"),
    "not compressed yet": (
        lambda c: c.update(quantization_status="frozen"), UnsupportedSpec, "quantization_status 'frozen'"),
    "a quantized cache": (lambda c: c.update(kv_cache_scheme={"num_bits": 8}), UnsupportedSpec, "kv_cache_scheme"),
    "a transform": (
        lambda c: c.update(transform_config={"config_groups": {"r": {}}}), UnsupportedSpec, "transform_config"),
    "sparsity": (
        lambda c: c.update(sparsity_config={"format": "sparse-24-bitmask"}), UnsupportedSpec, "sparsity_config"),
    "no groups": (lambda c: c.update(config_groups={}), BadConfig, "at least one group"),
    "groups that are a list": (lambda c: c.update(config_groups=[1]), BadConfig, "config_groups must be an object"),
    "a preset": (lambda c: c.update(config_groups={"W4A16": ["Linear"]}), UnsupportedSpec, "not spelled out"),
    "no weights": (lambda c: c["config_groups"]["group_0"].update(weights=None), BadConfig, "weights must be an"),
    "quantized inputs": (
        lambda c: c["config_groups"]["group_0"].update(input_activations={"num_bits": 8}), UnsupportedSpec,
        "input_activations"),
    "quantized outputs": (
        lambda c: c["config_groups"]["group_0"].update(output_activations={"num_bits": 8}), UnsupportedSpec,
        "output_activations"),
    "floats": (lambda c: weights_of(c).update(type="float"), UnsupportedSpec, "type 'float'"),
    "sixteen bits": (lambda c: weights_of(c).update(num_bits=16), UnsupportedSpec, "num_bits '16'"),
    "bits in words": (lambda c: weights_of(c).update(num_bits="4"), UnsupportedSpec, "num_bits '4'"),
    "dynamic scales": (lambda c: weights_of(c).update(dynamic=True), UnsupportedSpec, "dynamic"),
    "dynamic as a number": (lambda c: weights_of(c).update(dynamic=0), UnsupportedSpec, "dynamic"),
    "columns in another order": (lambda c: weights_of(c).update(actorder="group"), UnsupportedSpec, "actorder 'group'"),
    "columns in an unknown order": (lambda c: weights_of(c).update(actorder=True), UnsupportedSpec, "actorder"),
    "one scale per tensor": (
        lambda c: weights_of(c).update(strategy="tensor", group_size=None), UnsupportedSpec, "strategy 'tensor'"),
    "blocks": (lambda c: weights_of(c).update(strategy="block", block_structure=[1, 2]), UnsupportedSpec, "'block'"),
    "no scale per group": (lambda c: weights_of(c).update(group_size=0), UnsupportedSpec, "group_size 0"),
    "an absurd group": (lambda c: weights_of(c).update(group_size=1 << 60), UnsupportedSpec, "group_size"),
    "groups that do not divide": (lambda c: weights_of(c).update(group_size=48), UnsupportedSpec, "64 columns"),
    "symmetric in words": (lambda c: weights_of(c).update(symmetric="no"), BadConfig, "symmetric must be true"),
    "symmetric against the tensors": (
        lambda c: weights_of(c).update(symmetric=True), InconsistentCheckpoint, "weight_zero_point is there"),
    "other bits than the tensors": (
        lambda c: weights_of(c).update(num_bits=8), InconsistentCheckpoint, "int8 g32 asym of 64 x 64 needs int32"),
    "other groups than the tensors": (
        lambda c: weights_of(c).update(group_size=16), InconsistentCheckpoint, "int4 g16 asym of 64 x 64 needs int32"),
    "targets that are a string": (
        lambda c: c["config_groups"]["group_0"].update(targets="Linear"), BadConfig, "targets must be a list"),
    "an expression that explodes": (
        lambda c: c.update(ignore=["re:(a+)+$"]), UnsupportedSpec, "not of the simple"),
    "an expression of many repetitions": (
        lambda c: c.update(ignore=["re:" + "a?" * 9 + "a" * 9]), UnsupportedSpec, "not of the simple"),
    "an expression that looks back": (lambda c: c.update(ignore=[r"re:(a)\1"]), UnsupportedSpec, "not of the simple"),
    "an expression that is none": (lambda c: c.update(ignore=["re:[z-a]"]), UnsupportedSpec, "not of the simple"),
    "an endless expression": (lambda c: c.update(ignore=["re:" + "a" * 300]), UnsupportedSpec, "not of the simple"),
    "very many expressions": (lambda c: c.update(ignore=["re:a"] * 99), UnsupportedSpec, "99 expressions"),
    "a layer that is ignored and quantized": (
        lambda c: c.update(ignore=["lm_head", Q]), IncompleteCheckpoint, f"{Q}.weight' is missing"),
    "a dense layer that should be quantized": (
        lambda c: c.update(ignore=[]), InconsistentCheckpoint, "lm_head.weight is dense"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "error", "complaint"), BAD_CONFIGS.values(), ids=BAD_CONFIGS.keys())
def test_a_config_that_is_not_ours_to_read_is_refused(
    change: Callable[[dict[str, Any]], Any], error: type[QuantkitError], complaint: str, folder: Path
) -> None:
    edit_config(folder, change)
    with pytest.raises(QuantkitError, match=complaint) as refusal:
        EXPORTER.read(folder)
    assert type(refusal.value) is error
    assert str(folder) in str(refusal.value)


BAD_TENSORS: dict[str, tuple[Callable[[dict[str, np.ndarray]], Any], type[QuantkitError], str]] = {
    "no codes": (lambda t: t.pop(f"{Q}.weight_packed"), IncompleteCheckpoint, f"{Q}.weight_packed is missing"),
    "no scales": (lambda t: t.pop(f"{Q}.weight_scale"), IncompleteCheckpoint, f"{Q}.weight_scale is missing"),
    "no zero points": (lambda t: t.pop(f"{Q}.weight_zero_point"), IncompleteCheckpoint, "weight_zero_point is missing"),
    "no shape": (lambda t: t.pop(f"{Q}.weight_shape"), IncompleteCheckpoint, f"{Q}.weight_shape is missing"),
    "too few codes": (
        lambda t: t.update({f"{Q}.weight_packed": t[f"{Q}.weight_packed"][:, 1:].copy()}), InconsistentCheckpoint,
        r"weight_packed is int32 \[64, 7\]"),
    "codes as floats": (
        lambda t: t.update({f"{Q}.weight_packed": t[f"{Q}.weight_packed"].astype(np.float32)}),
        InconsistentCheckpoint, "weight_packed is float32"),
    "scales as integers": (
        lambda t: t.update({f"{Q}.weight_scale": np.ones((64, 2), np.int32)}), InconsistentCheckpoint,
        "weight_scale is int32"),
    "scales of another layer": (
        lambda t: t.update({f"{Q}.weight_scale": t[f"{UP}.weight_scale"]}), InconsistentCheckpoint,
        r"weight_scale is float16 \[96, 2\]"),
    "another shape": (
        lambda t: t.update({f"{Q}.weight_shape": np.array([64, 65])}), InconsistentCheckpoint,
        r"weight_shape says \[64, 65\]"),
    "a dense weight as well": (
        lambda t: t.update({f"{Q}.weight": np.ones((64, 64), np.float32)}), InconsistentCheckpoint,
        f"{Q}.weight is dense"),
    "an order of columns": (
        lambda t: t.update({f"{Q}.weight_g_idx": np.zeros(64, np.int32)}), UnsupportedSpec, "columns in another order"),
    "a stray part": (
        lambda t: t.update({f"{Q}.input_scale": np.ones(1, np.float32)}), InconsistentCheckpoint, "input_scale"),
    "no norm": (lambda t: t.pop("model.norm.weight"), IncompleteCheckpoint, "'model.norm.weight' is missing"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "error", "complaint"), BAD_TENSORS.values(), ids=BAD_TENSORS.keys())
def test_tensors_that_contradict_the_config_are_refused(
    change: Callable[[dict[str, np.ndarray]], Any], error: type[QuantkitError], complaint: str, folder: Path
) -> None:
    edit_tensors(folder, change)
    with pytest.raises(QuantkitError, match=complaint) as refusal:
        EXPORTER.read(folder)
    assert type(refusal.value) is error


def test_a_scale_that_is_not_a_number_is_refused_by_the_tensor_that_holds_it(folder: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[f"{Q}.weight_scale"] = np.full((64, 2), np.nan, np.float16)

    edit_tensors(folder, change)
    checkpoint = EXPORTER.read(folder)
    with pytest.raises(NonFiniteValues, match=rf"^{Q}\.weight: "):
        checkpoint.weights[f"{Q}.weight"].read()


def test_a_quantization_config_that_is_no_object_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": ["compressed-tensors"]}))
    assert not EXPORTER.recognizes(folder)
    with pytest.raises(BadConfig, match="quantization_config must be an object"):
        EXPORTER.read(folder)


@pytest.mark.parametrize("content", [None, "", "{", '{"quantization_config": {"quant_method": "gptq"}}', "[1]"])
def test_other_folders_are_not_recognized(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert not EXPORTER.recognizes(tmp_path)
    assert not EXPORTER.recognizes(tmp_path / "config.json")
