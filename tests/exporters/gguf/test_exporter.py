"""What is in a GGUF file: metadata, names, types and order, as gguf-py reads them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.errors import BadOption, NonFiniteValues, ValueOutOfRange
from quantkit.exporters.gguf.container.file import read_gguf
from quantkit.exporters.gguf.mixture.file_types import MIXED
from quantkit.models.folding import folded
from quantkit.models.recognition import parse_config
from quantkit.models.spec import Role
from quantkit.protocols import ExportOptions
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView, TensorView
from tests.support.gguf_models import (
    BF16,
    CONFIG,
    EXPORTER,
    K_PROJ,
    LLAMA,
    Q_PROJ,
    UP_PROJ,
    WIDE,
    dense,
    permuted,
    quantized,
    theirs,
    write,
)
from tests.support.memory import memory_checkpoint, random_arrays

ROUNDED = [kind for kind in EXPORTER.types if kind not in ("tq2_0", "tq1_0", "q2_0", *MIXED)]
"""Types that any dense weights are rounded to; the others take ternary ones only."""


def test_metadata_holds_the_scalars_of_the_family(tmp_path: Path, tokenizer_files: dict[str, bytes]) -> None:
    fields, _ = theirs(write(dense(files=tokenizer_files), tmp_path / "m.gguf", "q8_0"))
    expected = {
        "general.architecture": "minicpm",
        "general.file_type": 7,
        "general.quantization_version": 2,
        "minicpm.block_count": 2,
        "minicpm.context_length": 1024,
        "minicpm.embedding_length": 128,
        "minicpm.feed_forward_length": 256,
        "minicpm.attention.head_count": 4,
        "minicpm.attention.head_count_kv": 2,
        "minicpm.rope.dimension_count": 32,
        "minicpm.rope.freq_base": 10000.0,
        "minicpm.attention.layer_norm_rms_epsilon": float(np.float32(1e-5)),
        "minicpm.vocab_size": 2048,
        "minicpm.embedding_scale": 12.0,
        "minicpm.residual_scale": float(np.float32(1.4 / math.sqrt(2))),
        "minicpm.logit_scale": 4.0,
        "minicpm.rope.scaling.type": "longrope",
        "minicpm.rope.scaling.original_context_length": 512,
        "minicpm.rope.scaling.attn_factor": float(np.float32(math.sqrt(1 + math.log(2) / math.log(512)))),
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2040,
        "tokenizer.ggml.eot_token_id": 2040,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": True,
    }
    assert {key: fields[key] for key in expected} == expected
    assert len(fields["tokenizer.ggml.tokens"]) == 2048
    assert fields["tokenizer.ggml.tokens"][2040] == "<|im_end|>"
    assert fields["tokenizer.ggml.token_type"][2040] == 3
    assert "<|im_start|>" in fields["tokenizer.chat_template"]


@pytest.mark.parametrize(
    ("kind", "number"),
    {
        **{"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "bf16": 32},
        **{"tq1_0": 36, "tq2_0": 37, "q2_0": 41},
    }.items(),
)
def test_the_file_type_is_the_number_of_llama_cpp(kind: str, number: int, tmp_path: Path) -> None:
    """`enum llama_ftype`."""
    source = quantized(AffineGroups(bits=2, group_size=-1, ternary=True), WIDE)
    assert read_gguf(write(source, tmp_path / "m.gguf", kind)).metadata["general.file_type"] == number


def test_a_folded_file_is_a_llama_without_scalars(tmp_path: Path) -> None:
    source = dense()
    fields, tensors = theirs(write(source, tmp_path / "m.gguf", "f32", "llama"))
    assert fields["general.architecture"] == "llama"
    assert not [key for key in fields if key.endswith(("embedding_scale", "residual_scale", "logit_scale"))]
    embedding = source.weights["model.embed_tokens.weight"].read().astype(np.float32)  # type: ignore[union-attr]
    assert np.array_equal(tensors["token_embd.weight"], embedding * np.float32(source.spec.fold_factor(Role.EMBED)))
    assert np.array_equal(tensors["output.weight"], embedding / np.float32(4))


def test_head_sizes_of_their_own_are_spoken_out(tmp_path: Path) -> None:
    fields, tensors = theirs(write(dense({**LLAMA, "head_dim": 64}), tmp_path / "m.gguf", "f16"))
    assert fields["llama.attention.key_length"] == fields["llama.attention.value_length"] == 64
    assert tensors["blk.0.attn_q.weight"].shape == (256, 128)


def test_rows_of_queries_and_keys_are_stored_in_pairs(tmp_path: Path) -> None:
    source = dense(dtype=np.float32)
    _, tensors = theirs(write(source, tmp_path / "m.gguf", "f32"))
    for name, found, heads in ((Q_PROJ, "blk.0.attn_q.weight", 4), (K_PROJ, "blk.1.attn_k.weight", 2)):
        weight = source.weights[name]
        assert isinstance(weight, TensorView)
        assert np.array_equal(tensors[found], permuted(weight.read(), heads))
    up = source.weights[UP_PROJ]
    assert isinstance(up, TensorView)
    assert np.array_equal(tensors["blk.0.ffn_up.weight"], up.read())


def test_the_order_is_that_of_the_forward_pass_and_ties_are_kept(tmp_path: Path) -> None:
    names = list(read_gguf(write(dense(), tmp_path / "m.gguf")).tensors)
    assert names[:5] == [
        "token_embd.weight", "rope_factors_long.weight", "rope_factors_short.weight",
        "blk.0.attn_norm.weight", "blk.0.attn_q.weight",
    ]  # fmt: skip
    assert names[-1] == "output_norm.weight"


@pytest.mark.parametrize("kind", ROUNDED)
def test_types_of_a_dense_source(kind: str, tmp_path: Path) -> None:
    """Matrices take the type, norms are F32, and embedding and head stay at eight bits."""
    tensors = read_gguf(write(dense(LLAMA | {"tie_word_embeddings": False}), tmp_path / "m.gguf", kind)).tensors
    outer = kind if kind in ("f32", "f16", "bf16") else "q8_0"
    for name, info in tensors.items():
        wanted = "f32" if "norm" in name else outer if name in ("token_embd.weight", "output.weight") else kind
        assert info.type.name.lower() == wanted, name


def test_rows_that_are_not_whole_blocks_stay_f16_and_a_note_says_so(tmp_path: Path) -> None:
    planned = EXPORTER.prepare(dense(LLAMA | {"intermediate_size": 72}), ExportOptions(type="q4_0"))
    types = {tensor.name: tensor.type for tensor in planned.tensors}
    assert types["blk.0.ffn_down.weight"] == "f16"
    assert types["blk.0.ffn_up.weight"] == "q4_0"
    assert any("2 tensors (blk.0.ffn_down.weight ...)" in note for note in planned.notes)


def test_planning_reads_no_tensor_data() -> None:
    def explode(*_: object) -> Any:
        raise AssertionError("tensor data was read")

    source = quantized(AffineGroups(bits=4, group_size=64))
    weights = {
        name: replace(view, read=explode) if isinstance(view, QuantizedView) else replace(view, fetch=explode)
        for name, view in source.weights.items()
    }
    for arch in ("native", "llama"):
        assert EXPORTER.prepare(replace(source, weights=weights), ExportOptions(arch=arch)).size > 100_000


def test_values_beyond_float16_are_refused_by_name(tmp_path: Path) -> None:
    arrays = random_arrays(parse_config(CONFIG), dtype=BF16)
    arrays[UP_PROJ][3, 5] = 1e6
    source = memory_checkpoint(CONFIG, arrays)
    with pytest.raises(ValueOutOfRange, match=UP_PROJ) as refusal:
        write(source, tmp_path / "m.gguf", "f16")
    assert "bf16" in str(refusal.value.hint)
    write(source, tmp_path / "m.gguf", "bf16")
    arrays[UP_PROJ][3, 5] = np.nan
    for kind in ROUNDED:
        with pytest.raises(NonFiniteValues, match=UP_PROJ):
            write(source, tmp_path / "bad.gguf", kind)
    assert not (tmp_path / "bad.gguf").exists()


def test_unknown_types_and_architectures_are_refused() -> None:
    with pytest.raises(BadOption, match="q7_k"):
        EXPORTER.prepare(dense(), ExportOptions(type="q7_k"))
    with pytest.raises(BadOption, match="qwen"):
        EXPORTER.prepare(dense(), ExportOptions(arch="qwen"))


def test_folding_and_then_writing_is_writing_folded(tmp_path: Path) -> None:
    source = dense()
    one = write(source, tmp_path / "one.gguf", "q8_0", "llama")
    two = write(folded(source), tmp_path / "two.gguf", "q8_0")
    assert one.read_bytes() == two.read_bytes()


def test_roles_of_the_outer_matrices_are_known() -> None:
    """The head of a tied model is its embedding; an own one is written as output.weight."""
    spec = parse_config({**CONFIG, "tie_word_embeddings": False})
    assert Role.LM_HEAD in {slot.role for slot in spec.slots()}
    planned = EXPORTER.prepare(dense({**CONFIG, "tie_word_embeddings": False}), ExportOptions())
    assert planned.tensors[-1].name == "output.weight"
