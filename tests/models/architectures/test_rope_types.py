"""Every type of RoPE turns by the angles that transformers turns by, and what is written of it says the same."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from quantkit.errors import BadConfig, UnsupportedModel
from quantkit.models.recognition import config_notes, parse_config
from quantkit.models.spec import architecture
from quantkit.runtimes.reference.formulas import rope_angles
from tests.support.memory import tiny_config

ORIGINAL = "original_max_position_embeddings"
CONTEXT = 4096
LLAMA = tiny_config(
    architectures=["LlamaForCausalLM"], model_type="llama", scale_emb=None, scale_depth=None, dim_model_base=None,
    max_position_embeddings=CONTEXT, rope_theta=500000.0, head_dim=64,
)  # fmt: skip
MINICPM = tiny_config(max_position_embeddings=CONTEXT, rope_theta=1e6, head_dim=64)
LISTS = {"short_factor": [1 + 0.1 * i for i in range(32)], "long_factor": [1 + 0.4 * i for i in range(32)]}
TYPES: dict[str, dict[str, Any]] = {
    "plain": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "linear, old key, odd": {"type": "linear", "factor": 2.7},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, ORIGINAL: 1024,
    },
    "llama3 of 3.2": {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, ORIGINAL: 2048,
    },
    "llama3 without an original": {"rope_type": "llama3", "factor": 3, "low_freq_factor": 2, "high_freq_factor": 3},
    "yarn": {"rope_type": "yarn", "factor": 4.0, ORIGINAL: 1024},
    "yarn, all keys": {
        "rope_type": "yarn", "factor": 40.0, ORIGINAL: 512, "beta_fast": 16, "beta_slow": 2, "mscale": 0.707,
        "mscale_all_dim": 1.2, "truncate": False,
    },
    "yarn, one mscale": {"rope_type": "yarn", "factor": 4.0, ORIGINAL: 1024, "mscale": 0.5, "mscale_all_dim": 0},
    "yarn, attention": {"rope_type": "yarn", "factor": 4.0, ORIGINAL: 1024, "attention_factor": 1.0},
    "yarn by the contexts": {"rope_type": "yarn", "factor": None, ORIGINAL: 1024},
    "yarn within": {"rope_type": "yarn", "factor": 1.0, ORIGINAL: 4096},
    "longrope": {"rope_type": "longrope", **LISTS, ORIGINAL: 1024},
    "longrope, factor": {"rope_type": "longrope", **LISTS, ORIGINAL: 1024, "factor": 2.0},
    "dynamic": {"type": "dynamic", "factor": 4.0},
    "dynamic, odd": {"rope_type": "dynamic", "factor": 1.7},
}  # fmt: skip


def cos_and_sin(spec: Any, length: int) -> np.ndarray:
    """As the reference has them: (2, T, D/2)."""
    angles = rope_angles(np.arange(length), spec.rope, spec.head_dim, length)
    return np.stack((np.cos(angles), np.sin(angles))) * np.float32(spec.rope.attention_factor)


def of_transformers(config: dict[str, Any], length: int) -> np.ndarray:
    """As transformers' Llama has them for the same config."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding  # noqa: PLC0415 - heavy

    told = transformers.LlamaConfig(**{key: value for key, value in config.items() if key != "architectures"})
    cos, sin = LlamaRotaryEmbedding(told)(torch.zeros(1), torch.arange(length)[None])
    half = cos.shape[-1] // 2
    return np.stack((cos[0, :, :half].numpy(), sin[0, :, :half].numpy()))


@pytest.mark.parametrize("length", [7, 1024, 1025, CONTEXT, 3 * CONTEXT])
@pytest.mark.parametrize("scaling", TYPES.values(), ids=TYPES.keys())
@pytest.mark.parametrize("name", ["rope_scaling", "rope_parameters"])
def test_a_llama_turns_as_transformers_turns_it(scaling: dict[str, Any], length: int, name: str) -> None:
    config = {**LLAMA, name: scaling}
    theirs = of_transformers({**LLAMA, name: dict(scaling)}, length)
    ours = cos_and_sin(parse_config(config), length)
    # An angle of t radians is rounded by t * 6e-8 in either order of multiplication, and each frequency by 2 ulp.
    assert np.abs(ours - theirs).max() <= 4 * length * np.finfo(np.float32).eps


@pytest.mark.parametrize("scaling", TYPES.values(), ids=TYPES.keys())
def test_what_is_written_is_the_same_model_to_us_and_to_transformers(scaling: dict[str, Any]) -> None:
    spec = parse_config({**LLAMA, "rope_scaling": scaling})
    written = architecture("llama").config(spec, {})
    assert parse_config(written) == spec
    for length in (7, 1025, CONTEXT):
        wanted = of_transformers({**LLAMA, "rope_scaling": dict(scaling)}, length)
        assert np.abs(of_transformers(written, length) - wanted).max() <= 4 * length * np.finfo(np.float32).eps


def test_each_type_turns_otherwise_than_plain_rope() -> None:
    plain = cos_and_sin(parse_config(LLAMA), 3 * CONTEXT)
    for name, scaling in TYPES.items():
        moved = np.abs(cos_and_sin(parse_config({**LLAMA, "rope_scaling": scaling}), 3 * CONTEXT) - plain).max()
        assert (moved > 0.1) == (name not in ("plain", "yarn within")), name


@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn"])
def test_a_type_that_is_rewritten_is_told(kind: str) -> None:
    (note,) = config_notes({**LLAMA, "rope_scaling": TYPES[kind]})
    assert f"rope type '{kind}' is read and written as LongRoPE" in note


@pytest.mark.parametrize("kind", ["llama3", "yarn"])
def test_a_minicpm_has_the_types_of_its_own_code_only(kind: str) -> None:
    with pytest.raises(UnsupportedModel, match=f"rope type '{kind}' is not supported; only default, longrope, linear"):
        parse_config({**MINICPM, "rope_scaling": TYPES[kind]})
    assert parse_config({**MINICPM, "rope_scaling": TYPES["linear"]}).rope.factors(1) == (4.0,) * 32


def test_dynamic_ntk_changes_nothing_within_the_context_and_grows_with_the_text_beyond() -> None:
    config = {**MINICPM, "rope_scaling": {"type": "dynamic", "factor": 4.0}}
    rope, plain = parse_config(config).rope, parse_config(MINICPM).rope
    for length in (1, 100, CONTEXT):
        assert rope.base(length, 64) == plain.base(length, 64) == 1e6
        assert rope.turns_alike(1, length)
    bases = [rope.base(length, 64) for length in (CONTEXT + 1, 5000, 2 * CONTEXT, 4 * CONTEXT)]
    assert bases == sorted(bases)
    assert bases[2] == pytest.approx(1e6 * 5 ** (64 / 62), rel=1e-12), "4 * 2 - 3"
    assert not rope.turns_alike(CONTEXT, CONTEXT + 1)
    assert not rope.turns_alike(5000, 5001)
    (note,) = config_notes(config)
    assert "beyond max_position_embeddings only" in note


@pytest.mark.parametrize(
    ("scaling", "complaint"),
    [
        ({"rope_type": "linear"}, "factor must be a positive finite number .*, is missing"),
        ({"rope_type": "dynamic"}, "factor must be .* is missing"),
        ({"rope_type": "yarn"}, "factor must be .* is missing"),
        ({"rope_type": "linear", "factor": 0}, "factor must be"),
        ({"rope_type": "linear", "factor": "4"}, "factor must be"),
        ({"rope_type": "dynamic", "factor": 0.5}, "factor must be a positive finite number from 1 to"),
        ({"rope_type": "dynamic", "factor": 4.0, ORIGINAL: 1024}, "is not max_position_embeddings 4096"),
        ({"rope_type": "llama3", "factor": 8.0}, "low_freq_factor must be .* is missing"),
        ({**TYPES["llama3"], "high_freq_factor": 1.0}, "high_freq_factor 1 must be larger than low_freq_factor 1"),
        ({**TYPES["llama3"], "low_freq_factor": math.nan}, "low_freq_factor must be"),
        ({**TYPES["yarn"], "beta_fast": -1}, "beta_fast must be"),
        ({**TYPES["yarn"], "truncate": 1}, "truncate must be true or false"),
        ({**TYPES["yarn"], ORIGINAL: 0}, f"{ORIGINAL} must be an integer from 2"),
    ],
)
def test_values_that_make_no_sense_are_refused_by_name(scaling: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadConfig, match=complaint):
        parse_config({**LLAMA, "rope_scaling": scaling})


def test_dynamic_ntk_of_two_channels_has_no_base() -> None:
    with pytest.raises(BadConfig, match="dynamic NTK needs a head_dim of at least 4"):
        parse_config({**LLAMA, "head_dim": 2, "rope_scaling": TYPES["dynamic"]})
