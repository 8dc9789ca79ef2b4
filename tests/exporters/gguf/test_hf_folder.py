"""A Hugging Face folder made of a GGUF file of standard keys alone: what transformers loads, and computes, and splits.

The judges are transformers on the folder, which reads it by itself, and llama.cpp on the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit import export, registry
from quantkit.artifacts.publishing import publish
from quantkit.exporters.gguf.container.file import read_gguf
from quantkit.models.checkpoint import Checkpoint
from quantkit.protocols import ExportOptions
from quantkit.tensors.block_options import BlockOptions
from tests.exporters.gguf.container.test_split import rewrite
from tests.support.gguf_models import CONFIG, EXPORTER, LLAMA, dense, write
from tests.support.strings import STRINGS
from tests.support.tokenizer_kinds import EXACT, SIZE, checkpoint_of

pytestmark = pytest.mark.engine("llama-cpp")
PROMPT = [1, 300, 400, 2041, 77, *range(100, 200, 3)]
LONG = {**CONFIG["rope_scaling"], "original_max_position_embeddings": 256}
VARIANTS: dict[str, dict[str, Any]] = {
    "a Llama": LLAMA,
    "untied": {**LLAMA, "tie_word_embeddings": False},
    "heads of another size": {**LLAMA, "head_dim": 64},
    "another base": {**LLAMA, "rope_theta": 50000.0},
    "LongRoPE": {**LLAMA, "rope_scaling": {**LONG, "long_factor": LONG["short_factor"]}},
    "a MiniCPM, folded": CONFIG,
    "a MiniCPM of other scalars, folded": {**CONFIG, "scale_emb": 7, "scale_depth": 2.1, "tie_word_embeddings": False},
}


def stripped(path: Path) -> Path:
    """The file without what quantkit alone writes."""
    own = {key: None for key in read_gguf(path).metadata if key.startswith("quantkit.")}
    assert own
    return rewrite(path, path.with_name("stripped.gguf"), keys=own)


def folder_of(source: Path, out: Path, **options: Any) -> Path:
    return export("hf", source, out, ExportOptions(type="f32", **options)).path


def log_probs(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    found: np.ndarray = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return found


def of_transformers(folder: Path) -> np.ndarray:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 - heavy

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    with torch.no_grad():
        found: np.ndarray = model(torch.tensor([PROMPT])).logits[0].numpy()
    return found


def of_llama_cpp(path: Path) -> np.ndarray:
    with registry.runtime("llama-cpp").open(path) as session:
        return session.logits(PROMPT)


@pytest.mark.parametrize("variant", VARIANTS)
def test_transformers_computes_with_the_folder_what_llama_cpp_computes_with_the_file(
    variant: str, tmp_path: Path, tokenizer_files: dict[str, bytes]
) -> None:
    config = VARIANTS[variant]
    source = stripped(write(dense(config, files=tokenizer_files), tmp_path / "m.gguf", "f32"))
    folder = folder_of(source, tmp_path / "hf", arch="llama")
    found, wanted = log_probs(of_transformers(folder)), log_probs(of_llama_cpp(source))
    assert np.abs(found - wanted).max() < 2e-4
    made = json.loads((folder / "config.json").read_text())
    assert made["model_type"] == "llama"
    if config is not CONFIG and "scale_emb" not in config:
        assert made["tie_word_embeddings"] == config["tie_word_embeddings"]
        assert made["head_dim"] == config.get("head_dim", 32)


@pytest.mark.parametrize("kind", ["q5_1", "q4_k_m", "iq4_nl", "mxfp4_moe"])
def test_blocks_become_the_weights_that_llama_cpp_computes_with(
    kind: str, tmp_path: Path, tokenizer_files: dict[str, bytes]
) -> None:
    """Its kernels round inputs to eight bits; the weights, once more as floats, are the same to it in float32."""
    config = {**LLAMA, "hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
    blocks = BlockOptions(algorithm="reference", pure=kind == "mxfp4_moe")
    planned = EXPORTER.prepare(dense(config, files=tokenizer_files), ExportOptions(type=kind, blocks=blocks))
    source = stripped(publish(planned, tmp_path / "m.gguf").path)
    plain = export("gguf", source, tmp_path / "plain.gguf", ExportOptions(type="f32")).path
    found, wanted = log_probs(of_transformers(folder_of(source, tmp_path / "hf"))), log_probs(of_llama_cpp(plain))
    assert np.abs(found - wanted).max() < 2e-4
    assert 0 < np.abs(found - log_probs(of_llama_cpp(source))).max() < 0.25


def test_a_native_minicpm_keeps_its_scalars_and_its_long_rope(
    tmp_path: Path, tokenizer_files: dict[str, bytes]
) -> None:
    config = {**CONFIG, "rope_scaling": {**LONG, "long_factor": [2 * x for x in LONG["short_factor"]]}, "head_dim": 32}
    given = dense(config, files=tokenizer_files)
    folder = folder_of(stripped(write(given, tmp_path / "m.gguf", "f32")), tmp_path / "hf")
    made: Mapping[str, Any] = json.loads((folder / "config.json").read_text())
    for key in ("scale_emb", "scale_depth", "dim_model_base", "rms_norm_eps", "max_position_embeddings", "head_dim"):
        assert made[key] == config.get(key, 32), key
    assert made["rope_scaling"] == {"rope_type": "longrope", **config["rope_scaling"]}
    back = registry.open_checkpoint(folder)
    for name, weight in given.weights.items():
        assert np.array_equal(back.weights[name].read(), weight.read().astype(np.float32)), name  # type: ignore[union-attr]


KINDS = ("SentencePiece", "Metaspace never", "byte-level minicpm5", "byte-level, BOS and EOS")


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokenizer_of_the_folder_gives_the_ids_of_llama_cpp(kind: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer  # noqa: PLC0415 - heavy

    source: Checkpoint = checkpoint_of(EXACT[kind]())
    path = stripped(write(source, tmp_path / "m.gguf", "f16"))
    folder = folder_of(path, tmp_path / "hf")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    with registry.runtime("llama-cpp").open(path) as session:
        for text in STRINGS:
            wanted = session.tokenize(text, add_special=True, parse_special=True)
            assert tokenizer(text)["input_ids"] == wanted, text
    messages = [{"role": "user", "content": "Why?"}]
    wanted_text = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    if "chat_template" in json.loads(source.files["tokenizer_config.json"]()):
        assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == wanted_text
    assert len(tokenizer) <= max(SIZE, 2048)
