"""GGUF files of other writers: read from their standard keys alone, or refused with the reason in one line."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from quantkit import registry
from quantkit.errors import (
    BadConfig,
    IncompleteCheckpoint,
    InconsistentCheckpoint,
    MalformedFile,
    NonFiniteValues,
    QuantkitError,
    UnsupportedModel,
    UnsupportedSpec,
)
from quantkit.exporters.gguf import blocks
from quantkit.exporters.gguf.container.file import read_gguf
from quantkit.exporters.gguf.container.header import entry, header_bytes, number_array, string_array
from quantkit.exporters.gguf.container.types import ValueType, padding
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.schemes.offset_groups import OffsetGroups
from quantkit.tensors.views import QuantizedView

EXPORTER = registry.exporter("gguf")
UP_PROJ = "model.layers.0.mlp.up_proj.weight"


def reference_values(path: Path, name: str) -> np.ndarray:
    """A tensor as gguf-py dequantizes it."""
    tensor = next(tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == name)
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type)


MINIMAL: dict[str, tuple[ValueType, Any]] = {
    "general.architecture": (ValueType.STRING, "minicpm"),
    "minicpm.block_count": (ValueType.UINT32, 1),
    "minicpm.context_length": (ValueType.UINT32, 64),
    "minicpm.embedding_length": (ValueType.UINT32, 64),
    "minicpm.feed_forward_length": (ValueType.UINT32, 96),
    "minicpm.attention.head_count": (ValueType.UINT32, 2),
    "minicpm.attention.head_count_kv": (ValueType.UINT32, 1),
    "minicpm.attention.layer_norm_rms_epsilon": (ValueType.FLOAT32, 1e-5),
    "minicpm.embedding_scale": (ValueType.FLOAT32, 12.0),
    "minicpm.residual_scale": (ValueType.FLOAT32, 1.4 / math.sqrt(1)),
    "minicpm.logit_scale": (ValueType.FLOAT32, 4.0),
}
SHAPES = {
    "token_embd.weight": (40, 64),
    "blk.0.attn_norm.weight": (64,),
    "blk.0.attn_q.weight": (64, 64),
    "blk.0.attn_k.weight": (32, 64),
    "blk.0.attn_v.weight": (32, 64),
    "blk.0.attn_output.weight": (64, 64),
    "blk.0.ffn_norm.weight": (64,),
    "blk.0.ffn_gate.weight": (96, 64),
    "blk.0.ffn_up.weight": (96, 64),
    "blk.0.ffn_down.weight": (64, 96),
    "output_norm.weight": (64,),
}


def stranger(
    path: Path,
    *,
    keys: Mapping[str, tuple[ValueType, Any] | None] | None = None,
    tensors: Mapping[str, tuple[int, ...] | None] | None = None,
    types: Mapping[str, blocks.BlockType] | None = None,
    extra: list[bytes] | None = None,
    fill: Callable[[str, np.ndarray], None] | None = None,
) -> Path:
    """A file with the standard keys alone; `keys` and `tensors` change it, None removes."""
    metadata = {key: item for key, item in {**MINIMAL, **(keys or {})}.items() if item is not None}
    shapes = {name: shape for name, shape in {**SHAPES, **(tensors or {})}.items() if shape is not None}
    infos = [(name, (types or {}).get(name, blocks.F32), shape) for name, shape in shapes.items()]
    entries = [entry(key, kind, item) for key, (kind, item) in metadata.items()]
    parts = [header_bytes([*entries, *(extra or [])], infos)]
    rng = np.random.default_rng(0)
    for name, block, shape in infos:
        values = rng.standard_normal(shape).astype(np.float32)
        if block is blocks.F32:
            data = values.view(np.uint8)
        elif block.name in blocks.QUANTIZED:
            data = random_blocks(block, shape)
        else:
            data = np.zeros(math.prod(shape[:-1]) * block.row_bytes(shape[-1]), np.uint8)
        if fill is not None:
            fill(name, data)
        parts.append(data.tobytes() + bytes(padding(data.nbytes)))
    path.write_bytes(b"".join(parts))
    return path


def random_blocks(block: blocks.BlockType, shape: tuple[int, ...]) -> np.ndarray:
    rng, cells = np.random.default_rng(0), (math.prod(shape[:-1]), shape[-1] // block.elements)
    scale, minimum = (rng.standard_normal(cells).astype(np.float16) for _ in range(2))
    codes = rng.integers(0, block.levels, (cells[0], shape[-1])).astype(np.uint8)
    return blocks.pack(block, codes, scale, minimum if block.has_minimum else None)


def test_a_file_of_standard_keys_alone_is_read(tmp_path: Path) -> None:
    back = EXPORTER.read(stranger(tmp_path / "m.gguf"))
    spec = back.spec
    assert (spec.architecture, spec.vocab_size, spec.head_dim, spec.tie_word_embeddings) == ("minicpm", 40, 32, True)
    assert (spec.scale_emb, spec.logit_divisor, spec.rms_norm_eps, spec.rope.theta) == (12.0, 4.0, 1e-5, 10000.0)
    assert back.config["scale_depth"] == 1.4
    assert back.config["dim_model_base"] == 16
    assert back.notes == ("the file has no tokenizer",)
    untied = EXPORTER.read(stranger(tmp_path / "u.gguf", tensors={"output.weight": (40, 64)}))
    assert not untied.spec.tie_word_embeddings


@pytest.mark.parametrize(("block", "bits"), [(blocks.Q4_0, 4), (blocks.Q5_0, 5), (blocks.Q8_0, 8)], ids=["4", "5", "8"])
def test_blocks_without_a_record_are_groups_of_32(block: blocks.BlockType, bits: int, tmp_path: Path) -> None:
    path = stranger(tmp_path / "m.gguf", types={"blk.0.ffn_up.weight": block})
    view = EXPORTER.read(path).weights[UP_PROJ]
    assert isinstance(view, QuantizedView)
    assert view.scheme == AffineGroups(bits=bits, group_size=32)
    assert np.array_equal(view.read().dequantized(), reference_values(path, "blk.0.ffn_up.weight"))


WIDER: dict[str, Any] = {
    "keys": {"minicpm.feed_forward_length": (ValueType.UINT32, 512)},
    "tensors": {
        "blk.0.ffn_gate.weight": (512, 64),
        "blk.0.ffn_up.weight": (512, 64),
        "blk.0.ffn_down.weight": (64, 512),
    },
}
"""Changes that give `ffn_down` rows of whole blocks of any type."""
DOWN_PROJ = "model.layers.0.mlp.down_proj.weight"
OWN_SCHEMES = {
    "TQ1_0": AffineGroups(bits=2, group_size=256, ternary=True),
    "TQ2_0": AffineGroups(bits=2, group_size=256, ternary=True),
    "Q2_0": AffineGroups(bits=2, group_size=64),
}


@pytest.mark.parametrize("name", OWN_SCHEMES)
def test_blocks_of_two_bits_without_a_record_are_groups_of_their_own_width(name: str, tmp_path: Path) -> None:
    """Three levels, or the four of Q2_0, which count from the other end; scales of both signs."""
    path = stranger(tmp_path / "m.gguf", types={"blk.0.ffn_down.weight": blocks.QUANTIZED[name]}, **WIDER)
    view = EXPORTER.read(path).weights[DOWN_PROJ]
    assert isinstance(view, QuantizedView)
    assert view.scheme == OWN_SCHEMES[name]
    raw = read_gguf(path).rows("blk.0.ffn_down.weight", 0, 64)
    assert np.array_equal(view.read().dequantized(), blocks.dequantize(blocks.QUANTIZED[name], raw))
    if name != "Q2_0":
        assert np.array_equal(view.read().dequantized(), reference_values(path, "blk.0.ffn_down.weight"))


def test_the_fourth_code_of_a_ternary_block_is_refused_when_it_is_read(tmp_path: Path) -> None:
    """ggml computes with it, and no ternary weight has it: bytes that no quantizer makes."""

    def spoil(name: str, data: np.ndarray) -> None:
        if name == "blk.0.ffn_down.weight":
            data.reshape(-1)[7] |= 0b1100

    types = {"blk.0.ffn_down.weight": blocks.TQ2_0}
    path = stranger(tmp_path / "m.gguf", types=types, fill=spoil, **WIDER)
    with pytest.raises(InconsistentCheckpoint, match=r"'blk\.0\.ffn_down\.weight': the codes .* ternary g256"):
        EXPORTER.read(path).weights[DOWN_PROJ].read()


@pytest.mark.parametrize("block", [blocks.Q4_1, blocks.Q5_1], ids=["4", "5"])
def test_blocks_with_a_minimum_are_read_as_what_ggml_computes_with(block: blocks.BlockType, tmp_path: Path) -> None:
    path = stranger(tmp_path / "m.gguf", types={"blk.0.ffn_up.weight": block})
    view = EXPORTER.read(path).weights[UP_PROJ]
    assert isinstance(view, QuantizedView)
    assert view.scheme == OffsetGroups(bits=block.bits, group_size=32)
    assert np.array_equal(view.read().dequantized(), reference_values(path, "blk.0.ffn_up.weight"))


@pytest.mark.parametrize("block", list(blocks.QUANTIZED.values()), ids=lambda block: block.name)
def test_an_infinite_scale_is_refused_when_it_is_read(block: blocks.BlockType, tmp_path: Path) -> None:
    def spoil(name: str, data: np.ndarray) -> None:
        if name == "blk.0.ffn_down.weight":
            data.reshape(-1, block.nbytes)[1, block.fields][:2] = np.frombuffer(struct.pack("<e", math.inf), np.uint8)

    path = stranger(tmp_path / "m.gguf", types={"blk.0.ffn_down.weight": block}, fill=spoil, **WIDER)
    with pytest.raises(NonFiniteValues, match=r"'blk\.0\.ffn_down\.weight': block 1 has a scale"):
        EXPORTER.read(path).weights[DOWN_PROJ].read()


def with_key(key: str, kind: ValueType, item: Any) -> dict[str, Any]:
    return {"keys": {key: (kind, item)}}


def tokenizer_of(tokens: int = 40, scores: int = 40, kinds: int = 40, kind: int = 1, bos: int = 1) -> list[bytes]:
    return [
        entry("tokenizer.ggml.model", ValueType.STRING, "llama"),
        string_array("tokenizer.ggml.tokens", [f"t{i}" for i in range(tokens)]),
        number_array("tokenizer.ggml.scores", ValueType.FLOAT32, [0.0] * scores),
        number_array("tokenizer.ggml.token_type", ValueType.INT32, [kind] * kinds),
        entry("tokenizer.ggml.bos_token_id", ValueType.UINT32, bos),
    ]


def record(text: str) -> list[bytes]:
    return [entry("quantkit.quantization", ValueType.STRING, text)]


RECORD = (
    '{"groups":[{"spec":{"bits":%s,"group_size":%d,"symmetric":%s,"scale_dtype":"float16"},'
    '"tensors":["blk.0.ffn_up.weight"]}]}'
)
U32, F32, TEXT = ValueType.UINT32, ValueType.FLOAT32, ValueType.STRING
REFUSED: dict[str, tuple[dict[str, Any], type[QuantkitError], str]] = {
    "another architecture": (with_key("general.architecture", TEXT, "qwen2"), UnsupportedModel, "'qwen2'"),
    "no architecture": ({"keys": {"general.architecture": None}}, MalformedFile, "general.architecture.* missing"),
    "architecture is a number": (with_key("general.architecture", U32, 1), MalformedFile, "must be str, is int"),
    "no layers": (with_key("minicpm.block_count", U32, 0), BadConfig, "0 layers"),
    "too many layers": (with_key("minicpm.block_count", U32, 1 << 31), BadConfig, "layers"),
    "more layers than tensors": (with_key("minicpm.block_count", U32, 2), IncompleteCheckpoint, "'blk.1.attn_norm"),
    "no heads": (with_key("minicpm.attention.head_count", U32, 0), BadConfig, "0 heads"),
    "heads per layer": (
        {"keys": {"minicpm.attention.head_count": None},
         "extra": [number_array("minicpm.attention.head_count", U32, [2])]}, MalformedFile, "head_count"),
    "key-value heads do not divide": (with_key("minicpm.attention.head_count_kv", U32, 3), BadConfig, "key_value"),
    "no width": ({"keys": {"minicpm.embedding_length": None}}, MalformedFile, "embedding_length.* missing"),
    "a width that is a string": (with_key("minicpm.embedding_length", TEXT, "64"), MalformedFile, "must be int"),
    "an absurd width": (with_key("minicpm.embedding_length", U32, 2**32 - 1), BadConfig, "hidden_size"),
    "partial rotary embedding": (with_key("minicpm.rope.dimension_count", U32, 16), UnsupportedModel, "dimension"),
    "values of another size": (with_key("minicpm.attention.value_length", U32, 16), UnsupportedModel, "value_length"),
    "epsilon is negative": (with_key("minicpm.attention.layer_norm_rms_epsilon", F32, -1.0), BadConfig, "rms_norm_eps"),
    "epsilon is NaN": (with_key("minicpm.attention.layer_norm_rms_epsilon", F32, math.nan), BadConfig, "rms_norm_eps"),
    "no logit scale": ({"keys": {"minicpm.logit_scale": None}}, UnsupportedModel, "minicpm.logit_scale.* missing"),
    "logit scale 0": (with_key("minicpm.logit_scale", F32, 0.0), BadConfig, "logit_scale"),
    "logit scale infinite": (with_key("minicpm.logit_scale", F32, math.inf), BadConfig, "logit_scale"),
    "an unknown key of the architecture": (
        with_key("minicpm.attention.sliding_window", U32, 4096), UnsupportedModel, "sliding_window"),
    "another rope scaling": (with_key("minicpm.rope.scaling.type", TEXT, "yarn"), UnsupportedModel, "'yarn'"),
    "longrope without factors": (with_key("minicpm.rope.scaling.type", TEXT, "longrope"), MalformedFile, "factors"),
    "factors of another length": (
        {"keys": {"minicpm.rope.scaling.type": (TEXT, "longrope")},
         "tensors": {"rope_factors_long.weight": (8,), "rope_factors_short.weight": (16,)}},
        MalformedFile, "16 values"),
    "another attention factor": (
        {"keys": {"minicpm.rope.scaling.type": (TEXT, "longrope"), "minicpm.rope.scaling.attn_factor": (F32, 1.5)},
         "tensors": {"rope_factors_long.weight": (16,), "rope_factors_short.weight": (16,)},
         "fill": lambda name, data: data.view(np.float32).fill(1) if "rope" in name else None},
        InconsistentCheckpoint, "attn_factor is 1.5"),
    "a missing tensor": ({"tensors": {"blk.0.ffn_up.weight": None}}, IncompleteCheckpoint, "'blk.0.ffn_up.weight'"),
    "a wrong shape": ({"tensors": {"blk.0.ffn_up.weight": (64, 64)}}, InconsistentCheckpoint, "'blk.0.ffn_up.weight'"),
    "a surplus tensor": ({"tensors": {"blk.0.attn_q.bias": (64,)}}, UnsupportedModel, "'blk.0.attn_q.bias'"),
    "a type that is not read": (
        {"types": {"blk.0.ffn_down.weight": blocks.BlockType("Q8_1", 9, 32, 36)}}, UnsupportedSpec, "Q8_1"),
    "a quantized norm": ({"types": {"output_norm.weight": blocks.Q8_0}}, UnsupportedSpec, "output_norm"),
    "vocab_size against the embedding": (with_key("minicpm.vocab_size", U32, 41), InconsistentCheckpoint, "token_embd"),
    "tokens of another number": ({"extra": tokenizer_of(tokens=39)}, InconsistentCheckpoint, "39 tokens"),
    "scores of another number": ({"extra": tokenizer_of(scores=1)}, InconsistentCheckpoint, "1 scores"),
    "token type 9": ({"extra": tokenizer_of(kind=9)}, MalformedFile, "token types"),
    "bos beyond the vocabulary": ({"extra": tokenizer_of(bos=40)}, BadConfig, "bos_token_id"),
    "no tokens": (with_key("tokenizer.ggml.model", TEXT, "llama"), MalformedFile, "tokens.* missing"),
    "a config that is no JSON": (with_key("quantkit.config", TEXT, "{"), MalformedFile, "quantkit.config"),
    "a config that is a number": (with_key("quantkit.config", U32, 1), MalformedFile, "quantkit.config"),
    "a record that is no JSON": ({"extra": record("[")}, MalformedFile, "quantkit.quantization"),
    "a record without groups": ({"extra": record('{"groups": 1}')}, MalformedFile, "list of groups"),
    "a record with strange bits": ({"extra": record(RECORD % ('"4"', 32, "true"))}, MalformedFile, "quantization"),
    "a record with 99 bits": ({"extra": record(RECORD % (99, 32, "true"))}, MalformedFile, "bits"),
    "a record for a dense tensor": ({"extra": record(RECORD % (4, 32, "true"))}, InconsistentCheckpoint, "has none"),
    "a record of groups that end inside a block": (
        {**WIDER, "extra": record(RECORD.replace("ffn_up", "ffn_down") % (2, 128, "true")),
         "types": {"blk.0.ffn_down.weight": blocks.TQ2_0}}, InconsistentCheckpoint, "no such codes"),
    "a record that the blocks cannot hold": (
        {"extra": record(RECORD % (8, 32, "true")), "types": {"blk.0.ffn_up.weight": blocks.Q4_0}},
        InconsistentCheckpoint, "no such codes"),
    "an asymmetric record for a type without zeros": (
        {"extra": record(RECORD % (3, 32, "false")), "types": {"blk.0.ffn_up.weight": blocks.Q4_0}},
        InconsistentCheckpoint, "no such codes"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_makes_no_model_is_refused(case: str, tmp_path: Path) -> None:
    changes, cause, message = REFUSED[case]
    path = stranger(tmp_path / "bad.gguf", **changes)
    with pytest.raises(cause, match=message) as refusal:
        EXPORTER.read(path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [(RECORD % (2, 32, "true"), "codes"), (RECORD % (4, 64, "true"), "scales")],
)
def test_blocks_that_are_not_what_the_record_says_are_refused(text: str, complaint: str, tmp_path: Path) -> None:
    path = stranger(tmp_path / "m.gguf", types={"blk.0.ffn_up.weight": blocks.Q4_0}, extra=record(text))
    with pytest.raises(InconsistentCheckpoint, match=complaint):
        EXPORTER.read(path).weights[UP_PROJ].read()


@pytest.mark.parametrize("minimum", [-0.5, 3.0, -16.0, -7.0], ids=["a fraction", "below zero", "beyond 15", "whole"])
def test_a_minimum_is_taken_as_it_is_whatever_the_record_says(minimum: float, tmp_path: Path) -> None:
    """Blocks with scale 1, of a file that was written when minimums were read as integer zero points."""

    def overwrite(name: str, data: np.ndarray) -> None:
        if name == "blk.0.ffn_up.weight":
            data.reshape(-1, blocks.Q4_1.nbytes)[:, :4] = np.frombuffer(struct.pack("<ee", 1, minimum), np.uint8)

    types = {"blk.0.ffn_up.weight": blocks.Q4_1}
    path = stranger(tmp_path / "m.gguf", types=types, extra=record(RECORD % (4, 32, "false")), fill=overwrite)
    tensor = EXPORTER.read(path).weights[UP_PROJ].read()
    assert tensor.scheme == OffsetGroups(bits=4, group_size=32)
    assert np.array_equal(tensor.dequantized(), tensor.codes + np.float32(minimum))
    assert np.array_equal(tensor.dequantized(), reference_values(path, "blk.0.ffn_up.weight"))


@pytest.mark.parametrize(
    ("keys", "note"),
    [
        ({"model": "t5"}, "its 't5' tokenizer is not read"),
        ({"model": "gpt2"}, "its tokenizer cuts text by the rule 'default', which is not known"),
        ({"model": "gpt2", "pre": "x-new"}, "its tokenizer cuts text by the rule 'x-new', which is not known"),
    ],
)
def test_a_tokenizer_of_another_kind_is_left_aside(keys: dict[str, str], note: str, tmp_path: Path) -> None:
    changed = {f"tokenizer.ggml.{key}": (ValueType.STRING, value) for key, value in keys.items()}
    back = EXPORTER.read(stranger(tmp_path / "m.gguf", keys=changed))
    assert back.files == {}
    assert back.notes == (note,)


def test_what_looks_like_a_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "empty.gguf").write_bytes(b"")
    (tmp_path / "renamed").write_bytes(b"GGUF\3\0\0\0")
    (tmp_path / "other").write_bytes(b"PK\3\4")
    (tmp_path / "folder.gguf").mkdir()
    found = {path.name: EXPORTER.recognizes(path) for path in tmp_path.iterdir()}
    assert found == {"empty.gguf": True, "renamed": True, "other": False, "folder.gguf": False}


def test_damaged_headers_never_end_in_anything_but_a_reason(tmp_path: Path) -> None:
    """Random bytes of a whole file are changed; it is refused by one of our errors, or read to the end."""
    whole = np.frombuffer(stranger(tmp_path / "m.gguf", extra=tokenizer_of()).read_bytes(), np.uint8)
    end = min(tensor.start for tensor in read_gguf(tmp_path / "m.gguf").tensors.values())
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        data = whole.copy()
        data[rng.integers(24, end)] = rng.choice([0, 1, 127, 128, 255])
        data.tofile(tmp_path / "damaged.gguf")
        try:
            for weight in EXPORTER.read(tmp_path / "damaged.gguf").weights.values():
                weight.read()
        except QuantkitError:
            refused += 1
    assert 100 < refused < 290
