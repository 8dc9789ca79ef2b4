"""What configs say about RoPE: transformers' own reading of it for Llama, and refusals of contradictions."""

from __future__ import annotations

import math
from typing import Any

import pytest

from quantkit.errors import BadConfig, UnsupportedModel
from quantkit.models.recognition import config_notes, parse_config
from quantkit.models.spec import architecture
from tests.support.memory import tiny_config

ORIGINAL = "original_max_position_embeddings"
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "short_factor": [1 + 0.1 * i for i in range(8)],
    "long_factor": [1 + 0.4 * i for i in range(8)],
    ORIGINAL: 1024,
}
MINICPM = tiny_config(max_position_embeddings=4096, rope_theta=10000.0)
LLAMA = {key: value for key, value in MINICPM.items() if key not in ("scale_emb", "scale_depth", "dim_model_base")} | {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama",
}  # fmt: skip
FAMILIES = pytest.mark.parametrize("config", [MINICPM, LLAMA], ids=["minicpm", "llama"])
DERIVED = math.sqrt(1 + math.log(4) / math.log(1024))
FACTORS = [
    {}, {"attention_factor": 1.0}, {"attention_factor": 1.3}, {"attention_factor": 0.5}, {"factor": 2.0},
    {"factor": 1.0}, {"factor": 0.5}, {"factor": 4.0}, {"factor": 32}, {"factor": 2.0, "attention_factor": 1.2},
    {"attention_factor": None, "factor": None},
]  # fmt: skip


def rope_of(config: dict[str, Any], **scaling: Any) -> Any:
    return parse_config({**config, "rope_scaling": {**LONGROPE, **scaling}}).rope


@pytest.mark.parametrize("name", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("more", FACTORS, ids=str)
def test_a_llamas_attention_factor_is_the_one_that_transformers_computes(more: dict[str, Any], name: str) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # noqa: PLC0415 - heavy

    config = {**LLAMA, name: {**LONGROPE, **more}}
    theirs = transformers.LlamaConfig(**{key: value for key, value in config.items() if key != "architectures"})
    _, factor = ROPE_INIT_FUNCTIONS["longrope"](theirs)
    assert parse_config(config).rope.attention_factor == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("more", FACTORS, ids=str)
def test_a_minicpm_computes_it_from_the_contexts_and_tells_what_it_ignores(more: dict[str, Any]) -> None:
    config = {**MINICPM, "rope_scaling": {**LONGROPE, **more}}
    assert parse_config(config).rope.attention_factor == DERIVED
    same = rope_of(LLAMA, **more).attention_factor == pytest.approx(DERIVED)
    notes = config_notes(config)
    assert len(notes) == (0 if same else 1)
    assert all("OpenBMB's code for MiniCPM ignores that and computes 1.095445" in note for note in notes)


def test_only_a_factor_that_engines_do_not_derive_is_explicit() -> None:
    for more in FACTORS:
        spec = parse_config({**LLAMA, "rope_scaling": {**LONGROPE, **more}})
        usual = math.isclose(spec.rope.attention_factor, DERIVED, rel_tol=1e-6)
        assert spec.explicit_attention_factor == (None if usual else spec.rope.attention_factor)
        assert parse_config(architecture("llama").config(spec, {})) == spec, "a config that is written says the same"
    assert parse_config(LLAMA).explicit_attention_factor is None


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "1", True, [1]])
@pytest.mark.parametrize("key", ["factor", "attention_factor"])
def test_a_factor_that_is_no_positive_number_is_refused(key: str, value: object) -> None:
    with pytest.raises(BadConfig, match=f"rope_scaling: {key} must be a positive finite number"):
        rope_of(LLAMA, **{key: value})


@FAMILIES
def test_both_names_of_the_object_may_say_the_same(config: dict[str, Any]) -> None:
    wanted = parse_config({**config, "rope_scaling": LONGROPE})
    new = {key: value for key, value in LONGROPE.items() if key != "rope_type"} | {"type": "longrope"}
    both = {**config, "rope_scaling": LONGROPE, "rope_parameters": {**new, "rope_theta": 10000}}
    assert parse_config(both) == wanted
    assert parse_config({**config, "rope_scaling": LONGROPE, "rope_parameters": None}) == wanted
    assert parse_config({**config, "rope_scaling": {}, "rope_parameters": LONGROPE}) == wanted


@FAMILIES
@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"rope_parameters": {**LONGROPE, "long_factor": [2.0] * 8}}, "rope_parameters and rope_scaling differ"),
        ({"rope_parameters": {"rope_type": "default"}}, "rope_parameters and rope_scaling differ"),
        ({"rope_parameters": {**LONGROPE, "factor": 2.0}}, "rope_parameters and rope_scaling differ"),
        ({"rope_parameters": {**LONGROPE, ORIGINAL: 512}}, "rope_parameters and rope_scaling differ"),
        ({"rope_parameters": {**LONGROPE, "rope_theta": 5e5}}, "rope_theta 10000.0 and rope_parameters.rope_theta"),
        ({"rope_scaling": {**LONGROPE, "rope_theta": 1e6}}, "rope_theta 10000.0 and rope_scaling.rope_theta 1000000"),
        ({ORIGINAL: 2048}, f"{ORIGINAL} 2048 and rope_scaling.{ORIGINAL} 1024 contradict"),
        ({"rope_scaling": {**LONGROPE, "type": "yarn"}}, "says rope_type 'longrope' and type 'yarn'"),
        ({"rope_scaling": [1]}, "rope_scaling must be an object or null"),
        ({"rope_parameters": "longrope"}, "rope_parameters must be an object or null"),
    ],
)
def test_two_values_that_contradict_each_other_are_refused(
    config: dict[str, Any], changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(BadConfig, match=complaint):
        parse_config({**config, "rope_scaling": LONGROPE, **changes})


@FAMILIES
def test_values_that_stand_twice_and_agree_are_taken(config: dict[str, Any]) -> None:
    wanted = parse_config({**config, "rope_scaling": LONGROPE})
    assert parse_config({**config, "rope_scaling": {**LONGROPE, "rope_theta": 10000}, ORIGINAL: 1024}) == wanted
    inside = {key: value for key, value in LONGROPE.items() if key != ORIGINAL}
    assert parse_config({**config, "rope_scaling": inside, ORIGINAL: 1024}) == wanted


@FAMILIES
@pytest.mark.parametrize(
    ("scaling", "complaint"),
    [
        ({**LONGROPE, "partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({**LONGROPE, "short_mscale": 1.1}, "short_mscale 1.1 is not understood"),
        ({**LONGROPE, "long_mscale": 1.2}, "long_mscale"),
        ({"rope_type": "default", "mrope_section": [16, 24, 24]}, "mrope_section"),
        ({"rope_type": "default", "factor": 8.0}, "factor 8.0"),
        ({"rope_type": "default", "partial_rotary_factor": 0.25}, "partial_rotary_factor 0.25"),
        (
            {"type": "mrope", "mrope_section": [16, 24, 24]},
            "rope type 'mrope' is not supported; only default, longrope",
        ),
        ({"rope_type": "proportional", "partial_rotary_factor": 1.0}, "rope type 'proportional'"),
        ({"rope_type": "ntk", "factor": 2.0}, "rope type 'ntk'"),
        ({"rope_type": 3}, "rope type 3"),
        ({"type": "linear", "factor": 2.0, "attention_factor": 1.5}, "attention_factor 1.5 is not understood"),
        ({"type": "dynamic", "factor": 2.0, "alpha": 1000.0}, "alpha 1000.0 is not understood"),
        ({"type": "dynamic", "factor": 2.0, "max_trained_positions": 8}, "max_trained_positions 8"),
        ({"full_attention": {"rope_type": "default"}}, "full_attention is not understood: an object for some"),
        ({"full_attention": {"rope_type": "default"}, "sliding_attention": {"rope_theta": 1e4}}, "full_attention is"),
    ],
)
def test_a_rope_that_is_not_understood_is_refused_by_name(
    config: dict[str, Any], scaling: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UnsupportedModel, match=complaint):
        parse_config({**config, "rope_scaling": scaling})


@FAMILIES
def test_what_changes_nothing_is_taken(config: dict[str, Any]) -> None:
    plain = {"rope_type": "default", "factor": 1.0, "partial_rotary_factor": 1.0, "mrope_section": None}
    assert parse_config({**config, "rope_scaling": plain}) == parse_config(config)
