"""A Llama of MiniCPM5's shape with a byte-level tokenizer: quantized, in every container, verified in real engines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quantkit import (
    CalibrationOptions,
    ExportOptions,
    QuantizeOptions,
    Sampling,
    export,
    generate,
    open_checkpoint,
    quantize,
    record_golden,
    verify,
)
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.text.tokenizer import open_tokenizer
from quantkit.verification.report import Report
from tests.support.tiny import tiny_tensors, write_tensors
from tests.support.tokenizer_folders import written
from tests.support.tokenizer_kinds import SIZE, around, named

TAGS = ("<function", "</function>", "<param", "</param>")
SHAPE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "bos_token_id": 1,
    "eos_token_id": [2, 4],
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 192,
    "intermediate_size": 256,
    "max_position_embeddings": 1024,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 5e6,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": SIZE,
}


def with_tags(value: dict[str, Any]) -> None:
    around("<s>")(value)
    last = value["added_tokens"][-1]
    value["added_tokens"] += [{**last, "id": 800 + place, "content": tag} for place, tag in enumerate(TAGS)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = written(named("minicpm5", with_tags), tmp_path_factory.mktemp("llama") / "model")
    (folder / "config.json").write_text(json.dumps(SHAPE))
    write_tensors(folder, tiny_tensors(SHAPE))
    return folder


@pytest.fixture(scope="module")
def golden(model: Path) -> Path:
    return record_golden(model, model.parent / "golden.bin").path


@pytest.fixture(scope="module")
def quantized(model: Path) -> Path:
    options = QuantizeOptions(
        method="gptq",
        scheme=AffineGroups(bits=4, group_size=32),
        calibration=CalibrationOptions(sequences=4, length=32),
    )
    return quantize(model, model.parent / "quantized", options).path


def assert_passed(report: Report, engine: str | None) -> None:
    assert report.passed, report
    assert report.engine == engine


@pytest.mark.engine("llama-cpp")
def test_a_gguf_file_of_it_is_verified_in_llama_cpp(quantized: Path, golden: Path, tmp_path: Path) -> None:
    path = export("gguf", quantized, tmp_path / "m.gguf").path
    assert_passed(verify(path, golden=golden, engine="llama-cpp"), "llama-cpp")
    text = generate(path, "Hi", Sampling(max_tokens=3), chat=True, engine="llama-cpp")
    assert "".join(text) or text.token_ids


@pytest.mark.engine("transformers")
def test_the_quantized_folder_is_verified_in_transformers(quantized: Path, golden: Path) -> None:
    assert_passed(verify(quantized, golden=golden, engine="transformers"), "transformers")


@pytest.mark.engine("transformers")
@pytest.mark.engine("llama-cpp")
def test_a_folder_from_its_gguf_file_is_verified_in_transformers(model: Path, golden: Path, tmp_path: Path) -> None:
    path = export("gguf", model, tmp_path / "m.gguf", ExportOptions(type="bf16")).path
    folder = export("hf", path, tmp_path / "hf").path
    assert_passed(verify(folder, golden=golden, engine="transformers"), "transformers")


@pytest.mark.parametrize("container", ["gptq", "awq", "compressed-tensors"])
def test_other_containers_are_verified_by_the_reference(
    container: str, quantized: Path, golden: Path, tmp_path: Path
) -> None:
    path = export(container, quantized, tmp_path / container).path
    assert_passed(verify(path, golden=golden, engine="reference"), None)
    tags = "".join(TAGS)
    for place in (path, quantized):
        tokenizer = open_tokenizer(open_checkpoint(place))
        ids = tokenizer.encode(tags, add_bos=False)
        assert ids == [800, 801, 802, 803]
        assert tokenizer.decode(ids, specials=False) == tags
