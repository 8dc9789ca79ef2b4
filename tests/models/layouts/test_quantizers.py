"""Folders that another tool has quantized are refused by its name, with what to do."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from quantkit import registry
from quantkit.errors import QuantkitError, UnsupportedModel
from tests.support.malformed_folders import FIRST, INDEX, SINGLE, Q, edit_json, replace_tensors, write_small_checkpoint

CONFIGS: dict[str, tuple[dict[str, Any], str, str]] = {
    "bitsandbytes": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "by bitsandbytes", r"dequantize\(\)"),
    "bitsandbytes of old": ({"load_in_8bit": True}, "by bitsandbytes", r"dequantize\(\)"),
    "fp8": ({"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}, "FP8", "FineGrainedFP8Config"),
    "fbgemm": ({"quant_method": "fbgemm_fp8"}, "FBGEMM", "original"),
    "HQQ": ({"quant_method": "hqq", "quant_config": {}}, "by HQQ", "original"),
    "EETQ": ({"quant_method": "eetq"}, "by EETQ", "original"),
    "AQLM": ({"quant_method": "aqlm"}, "by AQLM", "original"),
    "torchao": ({"quant_method": "torchao", "quant_type": {}}, "by torchao", "original"),
    "Quanto": ({"quant_method": "quanto", "weights": "int8"}, "by Quanto", "original"),
    "EXL2": ({"quant_method": "exl2", "bits": 4.25}, "EXL2", "original"),
    "EXL3": ({"quant_method": "exl3"}, "EXL3", "original"),
    "MXFP4": ({"quant_method": "mxfp4"}, "MXFP4", "Mxfp4Config"),
    "AutoRound": ({"quant_method": "auto-round", "bits": 4}, "by AutoRound", "auto_gptq"),
    "VPTQ": ({"quant_method": "vptq"}, "by VPTQ", "original"),
    "HIGGS": ({"quant_method": "higgs"}, "by HIGGS", "original"),
    "Quark": ({"quant_method": "quark"}, "AMD's Quark", "original"),
    "ModelOpt": ({"producer": {"name": "modelopt"}, "quant_algo": "NVFP4"}, "ModelOpt", "original"),
    "MLX beside itself": ({"group_size": 64, "bits": 4}, "by MLX", "mlx_lm.convert --dequantize"),
    "no method": ({"bits": 4, "sym": True}, "by a method that it does not name", "original"),
    "a method that is no name": ({"quant_method": ["gptq"]}, "by a method that it does not name", "original"),
    "a method of the future": ({"quant_method": "zzz"}, "by 'zzz', which is not known here", "original"),
}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_small_checkpoint(tmp_path / "model")


def refused(folder: Path, words: str, hint: str) -> str:
    with pytest.raises(UnsupportedModel, match=words) as refusal:
        registry.open_checkpoint(folder)
    assert "already quantized" in str(refusal.value)
    assert str(folder) in str(refusal.value)
    assert re.search(hint, str(refusal.value.hint))
    assert str(refusal.value.hint).startswith("take the original checkpoint")
    return str(refusal.value)


@pytest.mark.parametrize("case", CONFIGS)
def test_a_method_is_named_from_the_config(case: str, small: Path) -> None:
    settings, words, hint = CONFIGS[case]
    edit_json(small / "config.json", lambda config: config.update(quantization_config=settings))
    refused(small, words, hint)


@pytest.mark.parametrize("case", CONFIGS)
def test_a_method_is_named_where_the_weights_are_pickles(case: str, small: Path) -> None:
    settings, words, hint = CONFIGS[case]
    edit_json(small / "config.json", lambda config: config.update(quantization_config=settings))
    for path in (*small.glob("*.safetensors"), small / INDEX):
        path.unlink()
    (small / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
    refused(small, words, hint)


OTHER_KEYS = {
    "sparseml": ({"compression_config": {"quant_method": "compressed-tensors"}}, "by compressed-tensors"),
    "QuIP#": ({"quip_params": {"codebook": "E8P12"}}, "by QuIP#"),
}


@pytest.mark.parametrize("case", OTHER_KEYS)
def test_a_method_is_named_from_keys_of_its_own(case: str, small: Path) -> None:
    keys, words = OTHER_KEYS[case]
    edit_json(small / "config.json", lambda config: config.update(keys))
    refused(small, words, "original")


MODULE = Q.removesuffix(".weight")
TRACES: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "bitsandbytes, 4 bits": (
        {Q: np.zeros((2048, 1), np.uint8), f"{Q}.absmax": np.zeros(64, np.uint8)},
        "by bitsandbytes",
    ),
    "bitsandbytes, 8 bits": ({Q: np.zeros((64, 64), np.int8), f"{MODULE}.SCB": np.zeros(64, np.float32)}, "bitsandb"),
    "fp8": (
        {Q: np.zeros((64, 64), ml_dtypes.float8_e4m3fn), f"{Q}_scale_inv": np.zeros((1, 1), np.float32)},
        "FP8",
    ),
    "HQQ": ({f"{MODULE}.W_q": np.zeros((32, 64), np.uint8), f"{MODULE}.scale": np.zeros(64, np.float16)}, "by HQQ"),
    "MLX": (
        {
            Q: np.zeros((64, 8), np.uint32),
            f"{MODULE}.scales": np.zeros((64, 1), np.float16),
            f"{MODULE}.biases": np.zeros((64, 1), np.float16),
        },
        "by MLX",
    ),
    "GPTQ": ({f"{MODULE}.qweight": np.zeros((8, 64), np.int32)}, "by GPTQ"),
    "AQLM": ({f"{MODULE}.codebooks": np.zeros((1, 4, 1, 8), np.float16)}, "by AQLM"),
    "EXL2": ({f"{MODULE}.q_weight": np.zeros((8, 64), np.int32)}, "EXL2"),
}


@pytest.mark.parametrize("case", TRACES)
def test_a_method_is_named_from_its_tensors_where_the_config_says_nothing(case: str, small: Path) -> None:
    tensors, words = TRACES[case]
    replace_tensors(small, lambda every: (every.pop(Q), every.update(tensors)))
    message = refused(small, words, "original")
    assert "tensor 'model.layers.0.self_attn.q_proj" in message


def test_layouts_of_methods_that_are_read_are_refused_by_their_readers(small: Path) -> None:
    for settings, words in (
        ({"quant_method": "compressed-tensors", "format": "naive-quantized", "config_groups": {}}, "format"),
        ({"quant_method": "awq", "version": "gemv", "bits": 4, "group_size": 32}, "version 'gemv'"),
        ({"quant_method": "gptq", "bits": 5, "group_size": 32}, "bits '5'"),
    ):
        edit_json(small / "config.json", lambda config, settings=settings: config.update(quantization_config=settings))
        with pytest.raises(QuantkitError, match=words):
            registry.open_checkpoint(small)


def test_a_dense_folder_is_no_other_tools(small: Path) -> None:
    edit_json(
        small / "config.json", lambda config: config.update(quantization_config=None, quantization={}, quip_params=None)
    )
    config = json.loads((small / "config.json").read_text())
    del config["quip_params"]
    (small / "config.json").write_text(json.dumps(config))
    save_file(load_file(small / FIRST), small / FIRST)
    assert registry.open_checkpoint(small).format == "hf"
    assert not (small / SINGLE).exists()
