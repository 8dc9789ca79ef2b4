"""Marlin's order against its definition, and the folders of both targets against what their loaders look for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from quantkit import registry
from quantkit.artifacts.publishing import preflight, publish
from quantkit.cli.app import main
from quantkit.errors import (
    BadOption,
    IncompleteCheckpoint,
    InconsistentCheckpoint,
    QuantkitError,
    UnsupportedSpec,
)
from quantkit.exporters.marlin import exporter as marlin
from quantkit.exporters.marlin.exporter import EXPORTER
from quantkit.exporters.marlin.matrices import permuted_scales
from quantkit.files.planned_files import PlannedArtifact
from quantkit.files.safetensors_writer import plan_safetensors
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import Role, TensorSlot
from quantkit.protocols import ExportOptions
from quantkit.tensors.packing import pack_marlin, unpack_marlin
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.scheme import SCALE_DTYPES
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView, TensorView
from tests.support.memory import tiny_config
from tests.support.quantized_models import Choice, linears, quantized_model, random_quantized

INT4 = AffineGroups(bits=4, group_size=128)
PER_ROW = AffineGroups(bits=4, group_size=-1)
FACTORS = [1.0 + i / 4 for i in range(32)]
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": FACTORS,
    "long_factor": FACTORS,
    "original_max_position_embeddings": 64,
}
MINICPM = tiny_config(
    vocab_size=97, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_key_value_heads=4,
    rope_scaling=LONGROPE, sparse_config={"topk": 64, "block_size": 64}, mup_denominator=32,
)  # fmt: skip
LLAMA = {**MINICPM, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": False}
STRADDLING = tiny_config(
    hidden_size=256, intermediate_size=320, num_hidden_layers=1, num_attention_heads=6, num_key_value_heads=1,
    head_dim=32,
)  # fmt: skip
"""k and v have 32 rows each: both lie in one run of 64."""

CPM_CU, IST = ExportOptions(), ExportOptions(target="ist")


@cache
def model(kind: str = "minicpm") -> Checkpoint:
    config = {"minicpm": MINICPM, "llama": LLAMA, "straddling": STRADDLING}[kind]
    return quantized_model(config, linears(PER_ROW if kind == "straddling" else INT4))


def written(checkpoint: Checkpoint, folder: Path, options: ExportOptions = CPM_CU) -> Path:
    out = folder / f"{options.target or 'cpm.cu'}-int4"
    publish(EXPORTER.prepare(checkpoint, options), out)
    return out


def config_of(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return loaded


def tensor_of(checkpoint: Checkpoint, name: str) -> QuantizedTensor:
    view = checkpoint.weights[name]
    assert isinstance(view, QuantizedView)
    return view.read()


def check_equal(back: Checkpoint, given: Checkpoint) -> None:
    """Every quantized weight has equal codes and float16 scales, every dense one equal values."""
    assert list(back.weights) == list(given.weights)
    for name, weight in given.weights.items():
        found = back.weights[name]
        if isinstance(weight, TensorView):
            assert isinstance(found, TensorView)
            assert np.array_equal(found.read().astype(np.float64), weight.read().astype(np.float64)), name
        else:
            tensor, other = weight.read(), tensor_of(back, name)
            assert np.array_equal(other.codes, tensor.codes), name
            assert other.scale.dtype == np.float16
            assert np.array_equal(other.scale.astype(np.float64), tensor.scale.astype(np.float64)), name
            assert (other.zero == 8).all()


# ------------------------------------------------------------------------------------------------------- the codes

DIGEST = "a92582ba8ab5ce17e5aef443dd2b625ee282223fc05a60823ab2369520c4d46c"
"""SHA-256 of the words of `pattern`, as `reference_pack` makes them."""


def pattern(rows: int = 128, cols: int = 256) -> np.ndarray:
    n, k = np.ogrid[:rows, :cols]
    return ((5 * n + 3 * k + n // 8) % 16).astype(np.uint8)


def reference_permutation() -> np.ndarray:
    """Where each of 1024 nibbles of a row of 16 x 16 tiles comes from, as the kernel's authors construct it.

    A lane holds, of each of four tiles, rows 2t, 2t+1, 2t+8, 2t+9 (t = lane % 4) of columns lane // 4 and that + 8;
    within every eight the even places come before the odd ones.
    """
    places = []
    for lane in range(32):
        for tile in range(4):
            eight = []
            for column in (lane // 4, lane // 4 + 8):
                for row in (0, 1, 8, 9):
                    eight.append(256 * tile + 16 * (2 * (lane % 4) + row) + column)
            places += eight[0::2] + eight[1::2]
    return np.array(places)


def reference_pack(codes: np.ndarray) -> np.ndarray:
    """Codes (n, k) in Marlin's order by way of the permutation, words as Python integers: (k / 16, 2 n)."""
    n, k = codes.shape
    tiles = codes.T.reshape(k // 16, 16, n // 16, 16).transpose(0, 2, 1, 3).reshape(k // 16, -1, 1024)
    nibbles = tiles[:, :, reference_permutation()].reshape(k // 16, 2 * n, 8).astype(object)
    words: np.ndarray = sum(nibbles[:, :, i] * 16**i for i in range(8))
    return words.astype(np.uint32)


def test_the_words_of_a_128_x_256_tensor_are_these() -> None:
    """Derived by hand from the closed form, codes[n, k] = (5 n + 3 k + n // 8) % 16. Nibbles from the highest down.

    word [0, 0]:    n = 8 8 0 0 8 8 0 0,                  k = 9 1 9 1 8 0 8 0
    word [5, 200]:  lane 18; n = 76 76 68 68 76 76 68 68, k = 93 85 93 85 92 84 92 84
    word [15, 255]: lane 31, tile 3; n = 127 127 119 119 127 127 119 119, k = 255 247 255 247 254 246 254 246
    """
    words = pack_marlin(pattern())
    assert words.shape == (16, 256)
    assert words.dtype == np.uint32
    assert [hex(words[at]) for at in ((0, 0), (5, 200), (15, 255))] == ["0x4cb31980", "0xc43b9108", "0x7fe64cb3"]
    for made in (words, reference_pack(pattern())):
        assert hashlib.sha256(made.astype("<u4").tobytes()).hexdigest() == DIGEST


def test_every_nibble_is_where_the_closed_form_puts_it() -> None:
    codes = np.random.default_rng(0).integers(0, 16, (192, 48)).astype(np.uint8)
    words = pack_marlin(codes)
    assert words.shape == (3, 384)
    for (tile, place), word in np.ndenumerate(words):
        block, rest = divmod(place, 128)
        lane, part = divmod(rest, 4)
        for i, j in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
            k = 16 * tile + 2 * (lane % 4) + [0, 1, 8, 9][j % 4]
            n = 64 * block + 16 * part + lane // 4 + 8 * (j // 4)
            assert int(word) >> 4 * i & 15 == codes[n, k]
    assert np.array_equal(unpack_marlin(words), codes)
    assert np.array_equal(unpack_marlin(words.view(np.int32)), codes)


def test_the_closed_form_is_the_permutation_of_the_kernels_authors() -> None:
    for codes in (pattern(), np.random.default_rng(1).integers(0, 16, (64, 16)).astype(np.uint8)):
        assert np.array_equal(pack_marlin(codes), reference_pack(codes))


def test_lanes_hold_the_b_fragments_of_mma_m16n8k16() -> None:
    """The kernel's way back, slowly: lane by lane, register by register.

    A lane loads four words in a row, one for each 16 x 16 tile. `dequant` of a word takes nibbles 0 and 4 for the
    first pair of halves and 1 and 5 for the second; of the word shifted by 8 bits the same for the other 8 columns.
    PTX: element i of a B fragment of m16n8k16 is row 2 (lane % 4) + i % 2 + 8 (i // 2), column lane // 4.
    """
    codes = np.random.default_rng(2).integers(0, 16, (128, 32)).astype(np.uint8)
    words = pack_marlin(codes)
    found = np.full(codes.shape, 255)
    for tile_row in range(2):
        for tiles in range(2):
            for lane in range(32):
                loaded = words[tile_row, 128 * tiles + 4 * lane :][:4].tolist()
                for tile, word in enumerate(loaded):
                    for half in (0, 1):
                        shifted = word >> 8 * half
                        fragment = [shifted & 15, shifted >> 16 & 15, shifted >> 4 & 15, shifted >> 20 & 15]
                        for i, value in enumerate(fragment):
                            k = 16 * tile_row + 2 * (lane % 4) + i % 2 + 8 * (i // 2)
                            n = 64 * tiles + 16 * tile + 8 * half + lane // 4
                            assert found[n, k] == 255, "two registers hold one weight"
                            found[n, k] = value
    assert np.array_equal(found, codes)


def test_the_order_of_codes_is_a_bijection() -> None:
    """Packing the three hexadecimal digits of 0 .. 1023 tells where each place went."""
    numbers = np.arange(1024).reshape(16, 64).T
    digits = [pack_marlin((numbers // 16**d % 16).astype(np.uint8)) for d in range(3)]
    nibbles = [[int(word) >> 4 * i & 15 for word in packed[0] for i in range(8)] for packed in digits]
    places = [low + 16 * middle + 256 * high for low, middle, high in zip(*nibbles, strict=True)]
    assert sorted(places) == list(range(1024))
    assert sorted(reference_permutation()) == list(range(1024))


# ------------------------------------------------------------------------------------------------------ the scales


def grouped_permutation() -> list[int]:
    return [i + 8 * j for i in range(8) for j in range(8)]


def single_permutation() -> list[int]:
    return [2 * i + j for i in range(4) for j in (0, 1, 8, 9, 16, 17, 24, 25)]


@pytest.mark.parametrize(("groups", "order"), [(3, grouped_permutation()), (1, single_permutation())])
def test_scales_are_permuted_in_runs_as_the_kernels_authors_do(groups: int, order: list[int]) -> None:
    scales = np.random.default_rng(3).standard_normal((groups, 192)).astype(np.float16)
    expected = scales.reshape(-1, len(order))[:, order].reshape(scales.shape)
    permuted = permuted_scales(scales)
    assert permuted.tobytes() == expected.tobytes()
    assert permuted_scales(permuted).tobytes() == scales.tobytes()
    assert sorted(order) == list(range(len(order)))


# --------------------------------------------------------------------------------------------------------- cpm.cu

BLOCK = [
    "input_layernorm.weight",
    "mlp.down_proj.qweight",
    "mlp.down_proj.scales",
    "mlp.gate_up_proj.qweight",
    "mlp.gate_up_proj.scales",
    "post_attention_layernorm.weight",
    "self_attn.o_proj.qweight",
    "self_attn.o_proj.scales",
    "self_attn.qkv_proj.qweight",
    "self_attn.qkv_proj.scales",
]
OUTSIDE = ["model.embed_tokens.weight", "model.norm.weight"]


@pytest.mark.parametrize(("kind", "outside"), [("minicpm", OUTSIDE), ("llama", ["lm_head.weight", *OUTSIDE])])
def test_cpm_cu_finds_exactly_the_names_that_it_knows(kind: str, outside: list[str], tmp_path: Path) -> None:
    folder = written(model(kind), tmp_path)
    names = [f"model.layers.{layer}.{name}" for layer in (0, 1) for name in BLOCK]
    assert sorted(load_file(folder / "model_gptq.safetensors")) == sorted([*names, *outside])
    assert sorted(path.name for path in folder.glob("*.safetensors*")) == ["model_gptq.safetensors"]


@pytest.mark.parametrize("kind", ["minicpm", "straddling"])
def test_fused_matrices_are_joined_before_they_are_ordered(kind: str, tmp_path: Path) -> None:
    given = model(kind)
    tensors = load_file(written(given, tmp_path) / "model_gptq.safetensors")
    order = grouped_permutation() if kind == "minicpm" else single_permutation()
    fused = {
        "self_attn.qkv_proj": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        "self_attn.o_proj": ["self_attn.o_proj"],
        "mlp.gate_up_proj": ["mlp.gate_proj", "mlp.up_proj"],
        "mlp.down_proj": ["mlp.down_proj"],
    }
    for module, parts in fused.items():
        layers = [tensor_of(given, f"model.layers.0.{part}.weight") for part in parts]
        codes = np.concatenate([layer.codes for layer in layers])
        scales = np.concatenate([layer.scale for layer in layers]).T
        words, found = tensors[f"model.layers.0.{module}.qweight"], tensors[f"model.layers.0.{module}.scales"]
        assert words.dtype == np.int32
        assert found.dtype == np.float16
        assert np.array_equal(words.view(np.uint32), reference_pack(codes)), module
        assert found.shape == scales.shape
        assert np.array_equal(found, scales.reshape(-1, len(order))[:, order].reshape(scales.shape)), module


@pytest.mark.parametrize("kind", ["minicpm", "llama", "straddling"])
def test_what_cpm_cu_loads_reads_back_as_it_was(kind: str, tmp_path: Path) -> None:
    folder = written(model(kind), tmp_path)
    back = registry.open_checkpoint(folder)
    assert back.format == "marlin"
    assert back.spec == model(kind).spec
    check_equal(back, model(kind))


def test_the_config_has_every_key_that_cpm_cu_reads(tmp_path: Path) -> None:
    source = {key: value for key, value in MINICPM.items() if key not in ("scale_depth", "num_key_value_heads")}
    config = config_of(written(quantized_model(source, linears(INT4)), tmp_path))
    expected = {
        "vocab_size": 97,
        "num_hidden_layers": 2,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 64,
        "rope_theta": 10000.0,
        "rope_scaling": LONGROPE,
        "scale_emb": 12,
        "dim_model_base": 16,
        "scale_depth": 1.0,
        "mup_denominator": 32,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "sparse_config": {"topk": 64, "block_size": 64},
        "model_type": "minicpm",
        "auto_map": {"AutoConfig": "configuration_minicpm.MiniCPMConfig"},
    }
    assert {key: config.get(key) for key in expected} == expected
    assert config["quantization_config"] == {
        "bits": 4,
        "checkpoint_format": "marlin",
        "desc_act": False,
        "group_size": 128,
        "is_marlin_format": True,
        "lm_head": False,
        "quant_method": "gptq",
        "static_groups": True,
        "sym": True,
    }


def test_a_llama_has_none_of_the_scalars(tmp_path: Path) -> None:
    """CPM.cu takes a scalar that is there, whatever the architecture; EAGLE heads must have the same ones."""
    (tmp_path / "folded").mkdir()
    plain = {key: value for key, value in LLAMA.items() if key not in ("scale_emb", "dim_model_base", "scale_depth")}
    config = config_of(written(quantized_model(plain, linears(INT4)), tmp_path))
    assert {"scale_emb", "dim_model_base", "scale_depth"}.isdisjoint(config)
    folded = config_of(written(model(), tmp_path / "folded", ExportOptions(arch="llama")))
    assert {"scale_emb", "dim_model_base", "scale_depth"}.isdisjoint(folded)
    assert folded["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.parametrize("spelling", [{"type": "su"}, {"type": "longrope"}])
def test_older_spellings_of_longrope_become_the_one_that_cpm_cu_knows(spelling: dict[str, str], tmp_path: Path) -> None:
    scaling = {**{key: value for key, value in LONGROPE.items() if key != "rope_type"}, **spelling}
    folder = written(quantized_model({**MINICPM, "rope_scaling": scaling}, linears(INT4)), tmp_path)
    assert config_of(folder)["rope_scaling"] == LONGROPE


def test_the_newer_name_of_rope_scaling_becomes_the_older(tmp_path: Path) -> None:
    newer = {**MINICPM, "rope_scaling": None, "rope_parameters": {**LONGROPE, "rope_theta": 5e5}}
    config = config_of(written(quantized_model(newer, linears(INT4)), tmp_path))
    assert config["rope_scaling"] == LONGROPE
    assert config["rope_theta"] == 5e5
    assert "rope_parameters" not in config


BFLOAT16 = AffineGroups(bits=4, group_size=128, scale_dtype="bfloat16")


def with_bfloat16_scales(**changed: np.float32) -> Checkpoint:
    """The model with scales that float16 holds, but for the layers named with `_` for `.`: their first is as given."""
    replaced = {}
    for seed, (name, weight) in enumerate(model().weights.items()):
        if isinstance(weight, QuantizedView):
            tensor = random_quantized(weight.shape, BFLOAT16, seed)
            scale = np.where(np.abs(tensor.scale.astype(np.float32)) < 2**-13, 0, tensor.scale)
            scale[0, 0] = changed.get(name.replace(".", "_"), 0)
            replaced[name] = replace(tensor, arrays={**tensor.arrays, "scale": scale.astype(tensor.scale.dtype)})
    return quantized_model(MINICPM, linears(BFLOAT16), replaced=replaced)


def test_scales_of_bfloat16_are_stored_in_float16_where_it_holds_them(tmp_path: Path) -> None:
    given = with_bfloat16_scales()
    check_equal(registry.open_checkpoint(written(given, tmp_path)), given)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_a_scale_that_float16_does_not_hold_leaves_nothing_behind(scale: float, tmp_path: Path) -> None:
    given = with_bfloat16_scales(model_layers_1_mlp_up_proj_weight=np.float32(scale))
    with pytest.raises(UnsupportedSpec, match=r"layers\.1\.mlp\.up_proj.*float16 scales, which cannot hold"):
        written(given, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_float32_weights_become_float16_and_sixteen_bits_stay(tmp_path: Path) -> None:
    wide = {
        name: replace(weight, dtype=np.dtype(np.float32), fetch=lambda a, b, w=weight: w.fetch(a, b).astype(np.float32))
        if isinstance(weight, TensorView) and weight.name != "model.norm.weight"
        else weight
        for name, weight in model().weights.items()
    }
    folder = written(replace(model(), weights=wide), tmp_path)
    assert config_of(folder)["torch_dtype"] == "float16"
    back = registry.open_checkpoint(folder)
    assert back.weights["model.embed_tokens.weight"].dtype == np.float16  # type: ignore[union-attr]
    assert str(back.weights["model.norm.weight"].dtype) == "bfloat16"  # type: ignore[union-attr]


def test_beyond_one_shard_there_is_one_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marlin, "plan_safetensors", partial(plan_safetensors, max_shard_bytes=300_000))
    folder = written(model(), tmp_path)
    assert [path.name for path in folder.glob("*.index.json")] == ["model.safetensors.index.json"]
    assert len(list(folder.glob("*.safetensors"))) == 4
    check_equal(registry.open_checkpoint(folder), model())


# ------------------------------------------------------------------------------------------------------------ ist


@pytest.mark.parametrize("spec", [INT4, PER_ROW])
def test_the_checkpoint_of_the_kernels_authors_has_every_layer_by_itself(spec: AffineGroups, tmp_path: Path) -> None:
    given = quantized_model(MINICPM, linears(spec))
    folder = written(given, tmp_path, IST)
    tensors = load_file(folder / "model.safetensors")
    order = grouped_permutation() if spec is INT4 else single_permutation()
    for name, weight in given.weights.items():
        module = name.removesuffix(".weight")
        if isinstance(weight, TensorView):
            assert name in tensors
            continue
        tensor = weight.read()
        assert np.array_equal(tensors[f"{module}.B"].view(np.uint32), reference_pack(tensor.codes)), name
        scales = tensor.scale.T
        assert np.array_equal(tensors[f"{module}.s"], scales.reshape(-1, len(order))[:, order].reshape(scales.shape))
    assert len(tensors) == len(given.weights) + 14
    settings = json.loads((folder / "quantize_config.json").read_text())
    assert settings == config_of(folder)["quantization_config"]
    assert settings["is_marlin_format"] is True
    assert settings["checkpoint_format"] == "marlin"
    assert settings["group_size"] == spec.group_size
    back = registry.open_checkpoint(folder)
    assert back.format == "marlin"
    check_equal(back, given)


# ------------------------------------------------------------------------------------------------------- refusals


def only(role: Role, spec: AffineGroups | None, others: AffineGroups = INT4) -> Choice:
    """`spec` for one role, `others` for the other linear layers."""
    return lambda slot: spec if slot.role is role else linears(others)(slot)


def dense_head(slot: TensorSlot) -> AffineGroups | None:
    return AffineGroups(bits=4, group_size=128) if slot.role is Role.LM_HEAD else linears(INT4)(slot)


def with_rope(**changes: Any) -> dict[str, Any]:
    return {**MINICPM, "rope_scaling": {**LONGROPE, **changes}}


REFUSED: Mapping[str, tuple[dict[str, Any], Choice, ExportOptions, str]] = {
    "three bits": (MINICPM, linears(AffineGroups(bits=3, group_size=128)), CPM_CU, "q_proj.*4 bits only"),
    "asymmetric": (
        MINICPM,
        linears(AffineGroups(bits=4, group_size=128, symmetric=False)),
        CPM_CU,
        "q_proj.*symmetric",
    ),
    "groups of 32": (MINICPM, linears(AffineGroups(bits=4, group_size=32)), CPM_CU, "q_proj.*groups of 128"),
    "float32 scales": (
        MINICPM,
        linears(AffineGroups(bits=4, group_size=128, scale_dtype="float32")),
        IST,
        "q_proj.*float16 scales",
    ),
    "q unlike k": (MINICPM, only(Role.K, PER_ROW), CPM_CU, "k_proj.weight is int4 row sym and .*q_proj.weight int4 g1"),
    "gate unlike up": (MINICPM, only(Role.UP, PER_ROW), IST, "up_proj.weight is int4 row sym and .*gate_proj.weight"),
    "two group sizes": (MINICPM, only(Role.DOWN, PER_ROW), CPM_CU, "down_proj.weight is int4 row sym and .*q_proj"),
    "a dense layer": (MINICPM, only(Role.O, None), CPM_CU, "o_proj.weight is dense"),
    "a quantized head": (LLAMA, dense_head, CPM_CU, "lm_head.weight is int4 g128 sym; marlin keeps"),
    "nothing quantized": (MINICPM, lambda slot: None, CPM_CU, "memory has none"),
    "rows of 32": (
        {**MINICPM, "intermediate_size": 480},
        linears(PER_ROW),
        CPM_CU,
        "down_proj.weight: 256 x 480; .*64",
    ),
    "64 by 64": (
        {**STRADDLING, "hidden_size": 192, "num_attention_heads": 4, "intermediate_size": 128},
        linears(PER_ROW),
        CPM_CU,
        "192; .* 128 rows or columns",
    ),
    "one group of all columns": (
        {**MINICPM, "hidden_size": 128, "num_key_value_heads": 2, "rope_scaling": None},
        linears(INT4),
        CPM_CU,
        "q_proj.weight.*k_proj.weight.*128; .*more columns than one group",
    ),
    "rows of 128 for ist": (
        {**MINICPM, "num_key_value_heads": 2},
        linears(INT4),
        IST,
        "k_proj.weight: 128 x 256; .*256",
    ),
    "short unlike long": (
        with_rope(long_factor=[2.0] * 32),
        linears(INT4),
        CPM_CU,
        "short_factor equal to long_factor",
    ),
    "an attention factor": (
        with_rope(original_max_position_embeddings=32),
        linears(INT4),
        CPM_CU,
        "ignores the attention factor 1.09",
    ),
}


@pytest.mark.parametrize(("config", "choose", "options", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_no_kernel_takes_is_refused_by_name(
    config: dict[str, Any], choose: Choice, options: ExportOptions, reason: str
) -> None:
    with pytest.raises(UnsupportedSpec, match=reason) as caught:
        EXPORTER.prepare(quantized_model(config, choose), options)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_the_kernels_own_layout_takes_every_longrope() -> None:
    config = with_rope(long_factor=[2.0] * 32, original_max_position_embeddings=32)
    assert EXPORTER.prepare(quantized_model(config, linears(INT4)), IST).files


@pytest.mark.parametrize(
    "options", [ExportOptions(type="q4_0"), ExportOptions(target="vllm"), ExportOptions(arch="qwen")]
)
def test_an_unknown_option_is_refused(options: ExportOptions) -> None:
    with pytest.raises(BadOption) as caught:
        EXPORTER.prepare(model(), options)
    assert caught.value.hint


def test_shapes_that_only_the_other_sparse_kernels_are_built_for_are_told() -> None:
    """CPM.cu tells MiniCPM4 by 16 layers per key/value head; its sparse kernels want 2 such heads and 32 heads."""
    told = tiny_config(
        hidden_size=128, intermediate_size=128, num_hidden_layers=32, num_attention_heads=4, num_key_value_heads=2
    )
    assert any(
        "--model-type minicpm" in note
        for note in EXPORTER.prepare(quantized_model(told, linears(PER_ROW)), CPM_CU).notes
    )
    assert EXPORTER.prepare(model(), CPM_CU).notes == ()


# ---------------------------------------------------------------------------------------------- the folder's name


@pytest.mark.parametrize("name", ["Model-GPTQ", "my.int4", "marlin", "8b-w4a16-v2"])
def test_a_name_that_says_quantized_is_taken(name: str, tmp_path: Path) -> None:
    preflight(EXPORTER.prepare(model(), CPM_CU), tmp_path / name)


def test_a_name_that_hides_the_quantization_from_cpm_cu_is_refused(tmp_path: Path) -> None:
    planned = EXPORTER.prepare(model(), CPM_CU)
    (tmp_path / "gptq").mkdir()
    for attempt in (preflight, publish):
        with pytest.raises(BadOption, match=r"must contain marlin, gptq, .* or qat$") as caught:
            attempt(planned, tmp_path / "gptq" / "minicpm4")
        assert caught.value.hint == "call it minicpm4-marlin"
    assert list((tmp_path / "gptq").iterdir()) == []
    preflight(EXPORTER.prepare(model(), IST), tmp_path / "gptq" / "minicpm4")


def test_the_command_line_takes_a_target_and_refuses_a_wrong_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = written(model(), tmp_path)
    assert main(["export", "marlin", str(source), "--target", "ist", "--out", str(tmp_path / "kernel")]) == 0
    check_equal(registry.open_checkpoint(tmp_path / "kernel"), model())
    assert main(["plan", str(source), "--to", "marlin", "--target", "ist", "--json"]) == 0
    capsys.readouterr()
    for arguments, message in (
        (["export", "marlin", str(source), "--out", str(tmp_path / "plain")], "hint: call it plain-marlin"),
        (["export", "marlin", str(source), "--target", "vllm", "--out", str(tmp_path / "int4")], "cpm.cu, ist"),
        (["export", "hf", str(source), "--target", "cpm.cu", "--out", str(tmp_path / "hf")], "leave --target out"),
        (["plan", str(source), "--to", "gguf", "--target", "ist"], "gguf has no target 'ist'"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.strip().splitlines()) == 1


# -------------------------------------------------------------------------------------------------------- reading


def stranger(folder: Path, given: Checkpoint, **settings: Any) -> Path:
    """A folder as CPM.cu's converter leaves it: one unusual file, beside the config of the GPTQ source."""
    folder.mkdir()
    quantization = {"bits": 4, "group_size": 128, "desc_act": False, "sym": True, "lm_head": False,
                    "static_groups": True, "checkpoint_format": "gptq", "quant_method": "gptq", **settings}  # fmt: skip
    (folder / "config.json").write_text(json.dumps({**given.config, "quantization_config": quantization}))
    tensors = {}
    fused = {"q_proj": ("q_proj", "k_proj", "v_proj"), "gate_proj": ("gate_proj", "up_proj"),
             "o_proj": ("o_proj",), "down_proj": ("down_proj",)}  # fmt: skip
    names = {"q_proj": "qkv_proj", "gate_proj": "gate_up_proj", "o_proj": "o_proj", "down_proj": "down_proj"}
    for name, weight in given.weights.items():
        if isinstance(weight, TensorView):
            tensors[name] = weight.read().astype(np.float16)
            continue
        parent, _, first = name.removesuffix(".weight").rpartition(".")
        if first in fused:
            layers = [tensor_of(given, f"{parent}.{part}.weight") for part in fused[first]]
            scales = np.concatenate([layer.scale for layer in layers]).T
            words = reference_pack(np.concatenate([layer.codes for layer in layers]))
            tensors[f"{parent}.{names[first]}.qweight"] = words.view(np.int32)
            order = grouped_permutation()
            tensors[f"{parent}.{names[first]}.scales"] = scales.reshape(-1, 64)[:, order].reshape(scales.shape)
    save_file(tensors, folder / "model_gptq.safetensors")
    return folder


def test_a_folder_of_cpm_cus_own_converter_is_read(tmp_path: Path) -> None:
    back = registry.open_checkpoint(stranger(tmp_path / "theirs", model()))
    assert back.format == "marlin"
    for name, weight in model().weights.items():
        if isinstance(weight, QuantizedView):
            assert np.array_equal(tensor_of(back, name).codes, weight.read().codes), name
            assert np.array_equal(tensor_of(back, name).scale, weight.read().scale), name


@pytest.mark.parametrize("source", ["gptq", "compressed-tensors", "awq"])
@pytest.mark.parametrize("options", [CPM_CU, IST], ids=["cpm.cu", "ist"])
def test_a_model_goes_from_and_to_every_other_int4_container(
    source: str, options: ExportOptions, tmp_path: Path
) -> None:
    other = registry.exporter(source)
    publish(other.prepare(model(), ExportOptions()), tmp_path / "theirs")
    ours = written(registry.open_checkpoint(tmp_path / "theirs"), tmp_path, options)
    check_equal(registry.open_checkpoint(ours), model())
    publish(other.prepare(registry.open_checkpoint(ours), ExportOptions()), tmp_path / "again")
    check_equal(registry.open_checkpoint(tmp_path / "again"), model())


def removed(folder: Path, name: str) -> None:
    changed_tensors(folder, lambda tensors: tensors.pop(name))


def changed_tensors(folder: Path, change: Any) -> None:
    file = folder / "model_gptq.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


QKV = "model.layers.0.self_attn.qkv_proj"
DAMAGES: Mapping[str, tuple[Any, type[QuantkitError], str]] = {
    "words missing": (lambda t: t.pop(f"{QKV}.qweight"), IncompleteCheckpoint, "qkv_proj.qweight is missing"),
    "scales missing": (lambda t: t.pop(f"{QKV}.scales"), IncompleteCheckpoint, "qkv_proj.scales is missing"),
    "words of another shape": (
        lambda t: t.update({f"{QKV}.qweight": t[f"{QKV}.qweight"].reshape(32, -1)}),
        InconsistentCheckpoint,
        r"qkv_proj.qweight is int32 \[32, 768\].*\[16, 1536\]",
    ),
    "float32 scales": (
        lambda t: t.update({f"{QKV}.scales": t[f"{QKV}.scales"].astype(np.float32)}),
        InconsistentCheckpoint,
        "qkv_proj.scales is float32",
    ),
    "a dense layer as well": (
        lambda t: t.update({"model.layers.0.self_attn.q_proj.weight": np.zeros((256, 256), np.float16)}),
        InconsistentCheckpoint,
        "q_proj.weight is there dense and quantized",
    ),
    "zero points": (
        lambda t: t.update({f"{QKV}.qzeros": np.zeros((2, 96), np.int32)}),
        InconsistentCheckpoint,
        "qkv_proj.qzeros' is not part",
    ),
    "layers not fused": (
        lambda t: t.update({"model.layers.1.mlp.up_proj.qweight": np.zeros((32, 512), np.int32)}),
        InconsistentCheckpoint,
        "up_proj.qweight' is not part",
    ),
}


@pytest.mark.parametrize(("change", "kind", "reason"), DAMAGES.values(), ids=DAMAGES.keys())
def test_tensors_that_contradict_the_config_are_refused(
    change: Any, kind: type[QuantkitError], reason: str, tmp_path: Path
) -> None:
    folder = stranger(tmp_path / "theirs", model())
    changed_tensors(folder, change)
    with pytest.raises(kind, match=reason):
        registry.open_checkpoint(folder)


@pytest.mark.parametrize(
    "settings",
    [{"bits": 8}, {"group_size": 64}, {"group_size": None}, {"sym": False}, {"desc_act": True}, {"lm_head": True},
     {"bits": "4"}, {"group_size": True}],
)  # fmt: skip
def test_settings_that_are_not_marlins_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedSpec, match=rf"quantization_config: {next(iter(settings))} "):
        registry.open_checkpoint(stranger(tmp_path / "theirs", model(), **settings))


def test_a_scale_that_is_not_finite_is_refused_with_the_name_of_its_layer(tmp_path: Path) -> None:
    folder = stranger(tmp_path / "theirs", model())
    changed_tensors(folder, lambda tensors: tensors[f"{QKV}.scales"].__setitem__((1, 300), np.inf))
    back = registry.open_checkpoint(folder)
    tensor_of(back, "model.layers.0.self_attn.q_proj.weight")
    with pytest.raises(QuantkitError, match=r"model\.layers\.0\.self_attn\.k_proj\.weight: .* NaN or infinite"):
        tensor_of(back, "model.layers.0.self_attn.k_proj.weight")


def test_only_marlin_folders_are_recognized(tmp_path: Path) -> None:
    assert not EXPORTER.recognizes(tmp_path)
    publish(registry.exporter("compressed-tensors").prepare(model(), ExportOptions()), tmp_path / "other")
    assert not EXPORTER.recognizes(tmp_path / "other")
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}')
    assert not EXPORTER.recognizes(tmp_path)
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "marlin"}}')
    assert EXPORTER.recognizes(tmp_path)


def test_a_plan_names_every_matrix_once() -> None:
    planned: PlannedArtifact = EXPORTER.prepare(model(), CPM_CU)
    names = [tensor.name for tensor in planned.tensors]
    assert len(names) == len(set(names)) == 2 + 2 * 6
    fused = next(tensor for tensor in planned.tensors if tensor.name == QKV)
    assert (fused.shape, fused.type) == ((768, 256), "int4 g128 sym")
    assert fused.nbytes == 768 * 256 // 2 + 768 * 2 * SCALE_DTYPES["float16"].itemsize
    assert planned.options == {"arch": "native", "target": "cpm.cu"}
