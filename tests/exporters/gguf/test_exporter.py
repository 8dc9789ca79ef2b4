"""GGUF: what is in the file (by gguf-py), what carrying keeps, what reading restores, and what llama.cpp computes.

The exporter's laws are in `laws.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.errors import (
    BadOption,
    InconsistentCheckpoint,
    NonFiniteValues,
    UnsupportedSpec,
    ValueOutOfRange,
)
from quantkit.exporters.gguf import blocks
from quantkit.exporters.gguf.file import read_gguf
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.folding import folded
from quantkit.models.spec import LINEAR_ROLES, Role, parse_config
from quantkit.protocols import ExportOptions
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.scheme import SCALE_DTYPES
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView, TensorView
from quantkit.text.vocabulary import read_vocabulary
from tests.support.memory import memory_checkpoint, random_arrays, tiny_config

BF16 = np.dtype(ml_dtypes.bfloat16)
EXPORTER = registry.exporter("gguf")
FACTORS = [round(1 + i / 7, 4) for i in range(16)]
CONFIG = tiny_config(
    vocab_size=2048,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    dim_model_base=32,
    max_position_embeddings=1024,
    eos_token_id=[2, 2040],
    rope_scaling={
        "rope_type": "longrope",
        "long_factor": FACTORS,
        "short_factor": FACTORS,
        "original_max_position_embeddings": 512,
    },
)
LLAMA = {**CONFIG, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "rope_scaling": None}
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
K_PROJ = "model.layers.1.self_attn.k_proj.weight"
UP_PROJ = "model.layers.0.mlp.up_proj.weight"


def dense(
    config: Mapping[str, Any] = CONFIG, *, dtype: Any = BF16, files: Mapping[str, bytes] | None = None
) -> Checkpoint:
    return memory_checkpoint(config, random_arrays(parse_config(config), dtype=dtype), files=files)


def random_quantized(shape: tuple[int, ...], spec: AffineGroups, seed: int = 0) -> QuantizedTensor:
    rng = np.random.default_rng(seed)
    rows, cols = shape
    groups = (rows, spec.groups(cols))
    zero = np.full(groups, spec.midpoint) if spec.symmetric else rng.integers(0, spec.levels, groups)
    return QuantizedTensor(
        spec,
        rng.integers(0, spec.levels, shape).astype(np.uint8),
        {
            "scale": (rng.uniform(0.5, 1.5, groups) * 0.05 / spec.midpoint).astype(SCALE_DTYPES[spec.scale_dtype]),
            "zero": zero.astype(np.uint8),
        },
    )


def quantized(
    spec: AffineGroups, config: Mapping[str, Any] = CONFIG, *, files: Mapping[str, bytes] | None = None
) -> Checkpoint:
    """Linear layers on the grid of `spec`, everything else dense."""
    model = parse_config(config)
    arrays: dict[str, np.ndarray | QuantizedTensor] = dict(random_arrays(model, dtype=BF16))
    for seed, slot in enumerate(model.slots()):
        if slot.role in LINEAR_ROLES:
            arrays[slot.name] = random_quantized(slot.shape, spec, seed)
    return memory_checkpoint(config, arrays, files=files)


def write(checkpoint: Checkpoint, path: Path, kind: str | None = None, arch: str = "native") -> Path:
    publish(EXPORTER.prepare(checkpoint, ExportOptions(type=kind, arch=arch)), path)
    return path


@pytest.fixture
def tokenizer_files(golden_model: Path) -> dict[str, bytes]:
    names = ("tokenizer.model", "added_tokens.json", "tokenizer_config.json")
    return {name: (golden_model / name).read_bytes() for name in names}


def theirs(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metadata and dequantized tensors as gguf-py reads them."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    return fields, {
        t.name: gguf.quants.dequantize(t.data, t.tensor_type).reshape(t.shape[::-1]) for t in reader.tensors
    }


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's `LlamaModel.permute`, spelled out by rows: pair i of a head is rows i and i + d/2."""
    size = len(weight) // heads
    order = [head * size + i + half * size // 2 for head in range(heads) for i in range(size // 2) for half in (0, 1)]
    return weight[order]


# --------------------------------------------------------------------------------------------------- what is written


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
    assert "minicpm.attention.key_length" not in fields


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


@pytest.mark.parametrize("kind", EXPORTER.types)
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
    for kind in EXPORTER.types:
        with pytest.raises(NonFiniteValues, match=UP_PROJ):
            write(source, tmp_path / "bad.gguf", kind)
    assert not (tmp_path / "bad.gguf").exists()


def test_unknown_types_and_architectures_are_refused() -> None:
    with pytest.raises(BadOption, match="q6_k"):
        EXPORTER.prepare(dense(), ExportOptions(type="q6_k"))
    with pytest.raises(BadOption, match="qwen"):
        EXPORTER.prepare(dense(), ExportOptions(arch="qwen"))


# ---------------------------------------------------------------------------------------------------------- carrying


@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize(
    ("bits", "kind"), [(2, "q4_0"), (3, "q4_0"), (4, "q4_0"), (4, "q5_0"), (5, "q5_0"), (4, "q8_0"), (8, "q8_0")]
)
def test_symmetric_codes_stand_for_scale_times_code_minus_zero(
    bits: int, kind: str, group_size: int, tmp_path: Path
) -> None:
    """Bit for bit, by gguf-py's own dequantization."""
    source = quantized(AffineGroups(bits=bits, group_size=group_size))
    _, tensors = theirs(write(source, tmp_path / "m.gguf", kind))
    for name, found, heads in ((UP_PROJ, "blk.0.ffn_up.weight", 0), (Q_PROJ, "blk.0.attn_q.weight", 4)):
        wanted = source.weights[name].read().dequantized()  # type: ignore[union-attr]
        wanted = permuted(wanted, heads) if heads else wanted
        assert (tensors[found] + np.float32(0)).tobytes() == (wanted + np.float32(0)).tobytes()


@pytest.mark.parametrize(("bits", "kind"), [(2, "q4_1"), (4, "q4_1"), (4, "q5_1"), (5, "q5_1")])
def test_asymmetric_codes_are_equal_and_minimums_are_rounded_once(bits: int, kind: str, tmp_path: Path) -> None:
    source = quantized(AffineGroups(bits=bits, group_size=64, symmetric=False))
    path = write(source, tmp_path / "m.gguf", kind)
    raw = next(t for t in gguf.GGUFReader(path).tensors if t.name == "blk.0.ffn_up.weight").data
    codes, scale, minimum = blocks.unpack(blocks.QUANTIZED[kind.upper()], np.asarray(raw))
    tensor = source.weights[UP_PROJ].read()
    assert isinstance(tensor, QuantizedTensor)
    assert np.array_equal(codes, tensor.codes)
    assert np.array_equal(scale, np.repeat(tensor.scale, 2, axis=1))
    assert minimum is not None
    exact = -np.repeat(tensor.scale.astype(float) * tensor.zero, 2, axis=1)
    assert (np.abs(minimum.astype(float) - exact) <= np.spacing(np.abs(minimum)).astype(float) / 2).all()


@pytest.mark.parametrize(("bits", "kind"), [(3, "q4_0"), (4, "q5_0"), (4, "q8_0"), (7, "q8_0")])
def test_asymmetric_weights_are_exact_in_types_that_hold_the_difference(bits: int, kind: str, tmp_path: Path) -> None:
    source = quantized(AffineGroups(bits=bits, group_size=64, symmetric=False))
    back = EXPORTER.read(write(source, tmp_path / "m.gguf", kind)).weights[UP_PROJ]
    assert isinstance(back, QuantizedView)
    assert back.scheme == AffineGroups(bits=int(kind[1]), group_size=64)
    assert np.array_equal(back.read().dequantized(), source.weights[UP_PROJ].read().dequantized())  # type: ignore[union-attr]


HOLDS = {
    ("q4_0", True): (2, 3, 4),
    ("q4_0", False): (2, 3),
    ("q4_1", True): (2, 3, 4),
    ("q4_1", False): (2, 3, 4),
    ("q5_0", True): (2, 3, 4, 5),
    ("q5_0", False): (2, 3, 4),
    ("q5_1", True): (2, 3, 4, 5),
    ("q5_1", False): (2, 3, 4, 5),
    ("q8_0", True): (2, 3, 4, 5, 6, 7, 8),
    ("q8_0", False): (2, 3, 4, 5, 6, 7),
}


@pytest.mark.parametrize(("kind", "symmetric"), HOLDS)
def test_what_a_type_holds(kind: str, symmetric: bool) -> None:
    """Against the definition: the smallest and largest of code - zero (or code) fit the block's integers."""
    for bits in range(2, 9):
        spec = AffineGroups(bits=bits, group_size=64, symmetric=symmetric)
        if bits in HOLDS[kind, symmetric]:
            EXPORTER.prepare(quantized(spec), ExportOptions(type=kind))
            continue
        with pytest.raises(UnsupportedSpec, match="gguf") as refusal:
            EXPORTER.prepare(quantized(spec), ExportOptions(type=kind))
        assert "model.layers.0" in str(refusal.value)
        able = [other for (other, s), widths in HOLDS.items() if s is symmetric and bits in widths]
        for other in able or ["f16"]:
            assert other in str(refusal.value.hint)


DEFAULTS = {
    AffineGroups(bits=2, group_size=32): "q4_0",
    AffineGroups(bits=4, group_size=128): "q4_0",
    AffineGroups(bits=5, group_size=32): "q5_0",
    AffineGroups(bits=8, group_size=-1): "q8_0",
    AffineGroups(bits=3, group_size=32, symmetric=False): "q4_1",
    AffineGroups(bits=4, group_size=64, symmetric=False): "q4_1",
    AffineGroups(bits=5, group_size=64, symmetric=False): "q5_1",
    AffineGroups(bits=6, group_size=64, symmetric=False): "q8_0",
}


@pytest.mark.parametrize("spec", DEFAULTS, ids=str)
def test_the_default_is_the_smallest_type_that_keeps_the_codes(spec: AffineGroups) -> None:
    planned = EXPORTER.prepare(quantized(spec), ExportOptions())
    types = {tensor.name: tensor.type for tensor in planned.tensors}
    assert types["blk.0.attn_q.weight"] == types["blk.1.ffn_down.weight"] == DEFAULTS[spec]
    assert types["token_embd.weight"] == "q8_0"
    assert planned.options["type"] == DEFAULTS[spec]
    assert any("1 dense matrices (token_embd.weight ...) become q8_0" in note for note in planned.notes)


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        (AffineGroups(bits=4, group_size=16), "groups of 16 .* f16"),
        (AffineGroups(bits=8, group_size=32, symmetric=False), "f16, bf16 or f32"),
    ],
    ids=str,
)
def test_codes_that_no_block_holds_are_refused_with_a_hint(spec: AffineGroups, hint: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedSpec) as refusal:
        EXPORTER.prepare(quantized(spec), ExportOptions())
    assert np.char.count([str(refusal.value.hint)], hint.split(" .* ", maxsplit=1)[0])[0]
    write(quantized(spec), tmp_path / "m.gguf", "f16")


def test_mixed_codes_take_a_type_each() -> None:
    source = quantized(AffineGroups(bits=4, group_size=64))
    eight = random_quantized((256, 128), AffineGroups(bits=8, group_size=32))
    view = QuantizedView(UP_PROJ, (256, 128), eight.scheme, lambda: eight)
    mixed = replace(source, weights={**source.weights, UP_PROJ: view})
    types = {tensor.name: tensor.type for tensor in EXPORTER.prepare(mixed, ExportOptions()).tensors}
    assert (types["blk.0.ffn_up.weight"], types["blk.0.ffn_gate.weight"]) == ("q8_0", "q4_0")
    with pytest.raises(UnsupportedSpec, match="up_proj"):
        EXPORTER.prepare(mixed, ExportOptions(type="q4_0"))


def test_a_quantized_embedding_is_carried_in_q8_0_beside_smaller_types(tmp_path: Path) -> None:
    source = quantized(AffineGroups(bits=4, group_size=64))
    name = "model.embed_tokens.weight"
    eight = random_quantized((2048, 128), AffineGroups(bits=8, group_size=32))
    view = QuantizedView(name, (2048, 128), eight.scheme, lambda: eight)
    path = write(replace(source, weights={**source.weights, name: view}), tmp_path / "m.gguf", "q4_0")
    back = EXPORTER.read(path).weights[name].read()
    assert isinstance(back, QuantizedTensor)
    assert np.array_equal(back.codes, eight.codes)
    assert back.scale.tobytes() == eight.scale.tobytes()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_only_scales_that_are_float16_are_carried(dtype: str, tmp_path: Path) -> None:
    spec = AffineGroups(bits=4, group_size=64, scale_dtype=dtype)
    source = quantized(spec)
    tensor = source.weights[UP_PROJ].read()
    assert isinstance(tensor, QuantizedTensor)

    def with_scale(value: float) -> Checkpoint:
        other = replace(tensor, arrays={**tensor.arrays, "scale": np.full_like(tensor.scale, value)})
        weights = {
            name: QuantizedView(name, view.shape, spec, lambda shape=view.shape: flat(shape, spec))
            if isinstance(view, QuantizedView)
            else view
            for name, view in source.weights.items()
        }
        return replace(source, weights={**weights, UP_PROJ: QuantizedView(UP_PROJ, other.shape, spec, lambda: other)})

    def flat(shape: tuple[int, int], spec: AffineGroups) -> QuantizedTensor:
        made = random_quantized(shape, spec)
        return replace(made, arrays={**made.arrays, "scale": np.full_like(made.scale, 0.25)})

    back = EXPORTER.read(write(with_scale(0.125), tmp_path / "m.gguf")).weights[UP_PROJ].read()
    assert isinstance(back, QuantizedTensor)
    assert back.scale.dtype == SCALE_DTYPES[dtype]
    assert (back.scale == 0.125).all()
    with pytest.raises(UnsupportedSpec, match=UP_PROJ):
        write(with_scale(2.0**-30), tmp_path / "n.gguf")
    with pytest.raises(UnsupportedSpec, match=UP_PROJ):
        write(with_scale(1e6), tmp_path / "n.gguf")


def test_a_minimum_beyond_float16_is_refused(tmp_path: Path) -> None:
    spec = AffineGroups(bits=4, group_size=64, symmetric=False)
    source = quantized(spec)
    tensor = random_quantized((256, 128), spec)
    large = replace(tensor, arrays={"scale": np.full_like(tensor.scale, 60000), "zero": np.full_like(tensor.zero, 15)})
    view = QuantizedView(UP_PROJ, (256, 128), spec, lambda: large)
    with pytest.raises(ValueOutOfRange, match=UP_PROJ):
        write(replace(source, weights={**source.weights, UP_PROJ: view}), tmp_path / "m.gguf")


# ----------------------------------------------------------------------------------------------------------- reading


def test_reading_and_writing_again_gives_the_same_bytes(tmp_path: Path, tokenizer_files: dict[str, bytes]) -> None:
    for number, (source, kind) in enumerate(
        [
            (dense(files=tokenizer_files), "f16"),
            (dense(files=tokenizer_files), "q4_0"),
            (quantized(AffineGroups(bits=4, group_size=128), files=tokenizer_files), None),
            (quantized(AffineGroups(bits=3, group_size=64, symmetric=False), files=tokenizer_files), None),
        ]
    ):
        one = write(source, tmp_path / f"{number}.gguf", kind)
        back = EXPORTER.read(one)
        two = write(back, tmp_path / f"{number}-again.gguf", kind if kind == "f16" else None)
        first, second = read_gguf(one), read_gguf(two)
        assert {**first.metadata, "quantkit.quantization": 0}.keys() == {
            **second.metadata,
            "quantkit.quantization": 0,
        }.keys()
        for name, info in first.tensors.items():
            rows = info.shape[0]
            assert second.tensors[name].type is info.type
            assert np.array_equal(first.rows(name, 0, rows), second.rows(name, 0, rows)), name


def test_the_config_and_the_tokenizer_come_back(tmp_path: Path, tokenizer_files: dict[str, bytes]) -> None:
    source = dense(files=tokenizer_files)
    back = EXPORTER.read(write(source, tmp_path / "m.gguf"))
    assert back.spec == source.spec
    assert {**back.config, "rope_theta": None} == {**CONFIG, "rope_theta": None, "tie_word_embeddings": True}
    assert read_vocabulary(back) == read_vocabulary(source)
    assert back.inputs == (tmp_path / "m.gguf",)
    assert set(back.files) == set(tokenizer_files)


def test_views_read_any_rows_in_the_models_order(tmp_path: Path) -> None:
    source = dense(dtype=np.float16)
    back = EXPORTER.read(write(source, tmp_path / "m.gguf", "f16"))
    for name in (Q_PROJ, K_PROJ, UP_PROJ, "model.norm.weight"):
        given, found = source.weights[name], back.weights[name]
        assert isinstance(given, TensorView)
        assert isinstance(found, TensorView)
        for start, stop in ((0, 1), (5, 39), (31, 33), (60, 64)):
            wanted = given.fetch(start, stop)
            assert np.array_equal(found.fetch(start, stop), wanted.astype(found.dtype)), (name, start, stop)


def test_a_config_that_contradicts_the_other_keys_is_refused(tmp_path: Path) -> None:
    """The same file says embedding_scale 12 and, in quantkit's key, scale_emb 13."""
    source = write(
        dense(LLAMA | {"architectures": ["MiniCPMForCausalLM"], "model_type": "minicpm"}), tmp_path / "m.gguf"
    )
    data = source.read_bytes()
    source.write_bytes(data.replace(b'"scale_emb":12', b'"scale_emb":13'))
    with pytest.raises(InconsistentCheckpoint, match="scale_emb"):
        EXPORTER.read(source)


# -------------------------------------------------------------------------------------------------------- llama.cpp

PROMPTS = [[1], [1, 300, 400, 2041, 77], [1, *range(100, 300, 3)]]

# Largest difference of log-probs to the weights that were written, in exact arithmetic, and some room: float32
# kernels differ by 1e-6; the others round activations to the weights' dtype, or to eight bits in blocks of 32.
TOLERANCES = {
    "f32": 2e-5,
    "f16": 5e-3,
    "bf16": 2e-2,
    "q8_0": 6e-2,
    "q4_0": 6e-2,
    "q4_1": 6e-2,
    "q5_0": 6e-2,
    "q5_1": 6e-2,
}


def expected_log_probs(checkpoint: Checkpoint) -> np.ndarray:
    """The torch model in float32 over the same weights."""
    torch = pytest.importorskip("torch")
    from quantkit.models.loading import load_model  # noqa: PLC0415 - needs torch

    model = load_model(checkpoint)
    rows = [model(torch.tensor([prompt]))[0, -1].double() for prompt in PROMPTS]
    return np.stack([torch.log_softmax(row, -1).numpy() for row in rows])


def engine_log_probs(path: Path) -> np.ndarray:
    with registry.runtime("llama-cpp").open(path) as session:
        rows = np.stack([session.next_logits(prompt) for prompt in PROMPTS]).astype(np.float64)
    return rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))


@pytest.mark.engine("llama-cpp")
@pytest.mark.parametrize("arch", ["native", "llama"])
@pytest.mark.parametrize("kind", EXPORTER.types)
def test_llama_cpp_computes_the_model(kind: str, arch: str, tmp_path: Path, tokenizer_files: dict[str, bytes]) -> None:
    source = dense(files=tokenizer_files)
    path = write(source, tmp_path / "m.gguf", kind, arch)
    found = engine_log_probs(path)
    assert np.abs(found - expected_log_probs(EXPORTER.read(path))).max() <= TOLERANCES[kind]
    if kind == "f32":
        assert np.abs(found - expected_log_probs(source)).max() <= TOLERANCES[kind]


@pytest.mark.engine("llama-cpp")
@pytest.mark.parametrize(
    "spec",
    [AffineGroups(bits=4, group_size=128), AffineGroups(bits=4, group_size=64, symmetric=False)],
    ids=["q4_0", "q4_1"],
)
def test_llama_cpp_computes_with_the_codes_that_were_given(
    spec: AffineGroups, tmp_path: Path, tokenizer_files: dict[str, bytes]
) -> None:
    source = quantized(spec, files=tokenizer_files)
    found = engine_log_probs(write(source, tmp_path / "m.gguf"))
    assert np.abs(found - expected_log_probs(source)).max() <= TOLERANCES["q4_0"]


VARIANTS: dict[str, dict[str, Any]] = {
    "plain RoPE, another base": {"rope_scaling": None, "rope_theta": 50000.0},
    "wide heads": {"head_dim": 64, "rope_scaling": None},
    "untied": {"tie_word_embeddings": False},
    "Llama": {**LLAMA, "tie_word_embeddings": False},
}


@pytest.mark.engine("llama-cpp")
@pytest.mark.parametrize("variant", VARIANTS)
def test_llama_cpp_computes_every_variant_of_the_family(
    variant: str, tmp_path: Path, tokenizer_files: dict[str, bytes]
) -> None:
    source = dense({**CONFIG, **VARIANTS[variant]}, files=tokenizer_files)
    found = engine_log_probs(write(source, tmp_path / "m.gguf", "f32"))
    assert np.abs(found - expected_log_probs(source)).max() <= TOLERANCES["f32"]


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
