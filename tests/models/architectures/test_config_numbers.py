"""Numbers of a config are such as a model can be computed with, and whatever is taken can be written and read again."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.errors import BadConfig, QuantkitError, UnsupportedModel
from quantkit.models.config_reader import shown
from quantkit.models.inspection import inspection
from quantkit.models.recognition import parse_config
from quantkit.models.spec import architecture
from quantkit.protocols import ExportOptions
from tests.support.memory import memory_checkpoint, random_arrays, tiny_config

MINICPM = tiny_config(rope_theta=10000.0)
LLAMA = tiny_config(
    architectures=["LlamaForCausalLM"], model_type="llama", scale_emb=None, scale_depth=None, dim_model_base=None,
    rope_theta=10000.0,
)  # fmt: skip
SCALARS = ("scale_depth", "dim_model_base", "scale_emb", "rms_norm_eps", "rope_theta")
BOUNDS: dict[str, tuple[float, float]] = {
    "scale_depth": (1e-4, 1e4), "dim_model_base": (0.1, 1e6), "scale_emb": (1e-4, 1e4), "rms_norm_eps": (1e-12, 0.1),
    "rope_theta": (2.0, 1e15),
}  # fmt: skip
NONSENSE: list[Any] = [
    5e-324, 2.5e-310, 1e-39, 0, 0.0, -0.0, -1, -1.4, math.nan, math.inf, -math.inf, 1e30, 1e300, True, False, "1.4", "",
    [1.4], {}, 10**40, 10**5000, -(10**5000),
]  # fmt: skip
RELEASED: dict[str, list[float]] = {
    "scale_depth": [1, 1.4], "dim_model_base": [1, 256], "scale_emb": [1, 12],
    "rms_norm_eps": [1e-5, 1e-6, 1e-8, 1e-3], "rope_theta": [10000, 10000.0, 5e5, 5e6, 1e6, 1e8, 1e11],
}  # fmt: skip


@pytest.mark.parametrize("value", NONSENSE, ids=shown)
@pytest.mark.parametrize("key", SCALARS)
def test_a_number_that_no_model_has_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(BadConfig, match=f"{key} must be a positive finite number from") as refusal:
        parse_config({**MINICPM, key: value})
    assert len(str(refusal.value)) < 200


@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta"])
@pytest.mark.parametrize("value", NONSENSE, ids=shown)
def test_it_is_refused_of_a_llama_too(key: str, value: Any) -> None:
    with pytest.raises(BadConfig, match=f"{key} must be"):
        parse_config({**LLAMA, key: value})


@pytest.mark.parametrize("key", SCALARS)
def test_what_released_models_have_lies_well_within_the_bounds(key: str) -> None:
    low, high = BOUNDS[key]
    for value in RELEASED[key]:
        assert 3 * low < value < high / 3
        parse_config({**MINICPM, key: value})
    for bound, beyond in ((low, low * (1 - 1e-9)), (high, high * (1 + 1e-9))):
        parse_config({**MINICPM, key: bound})
        with pytest.raises(BadConfig, match=f"{key} must be"):
            parse_config({**MINICPM, key: beyond})


@pytest.mark.parametrize("corner", list(itertools.product((0, 1), repeat=len(SCALARS))))
def test_a_model_at_the_bounds_is_inspected_written_and_read_again(corner: tuple[int, ...], tmp_path: Path) -> None:
    config = {**MINICPM, **{key: BOUNDS[key][end] for key, end in zip(SCALARS, corner, strict=True)}}
    source = memory_checkpoint(config, random_arrays(parse_config(config)))
    facts = json.dumps(inspection(source).to_json(), allow_nan=False)
    assert "Infinity" not in facts
    for name, arch in (("hf", "native"), ("gguf", "native"), ("hf", "llama"), ("gguf", "llama")):
        out = tmp_path / f"{name}-{arch}"
        try:
            out = publish(registry.exporter(name).prepare(source, ExportOptions(type="f32", arch=arch)), out).path
        except UnsupportedModel as refusal:
            assert arch == "llama", "only folding moves a number"
            assert "folding makes rms_norm_eps" in str(refusal)
            assert not out.exists()
            continue
        found = registry.open_checkpoint(out).spec
        wanted = source.spec if arch == "native" else source.spec.folded()
        assert np.float32(found.rms_norm_eps) == np.float32(wanted.rms_norm_eps)
        assert found.rope.theta == wanted.rope.theta


def test_folding_refuses_an_epsilon_that_no_config_may_have() -> None:
    spec = parse_config({**MINICPM, "rms_norm_eps": 0.1, "scale_depth": 1.3 * math.sqrt(3)})
    with pytest.raises(UnsupportedModel, match=r"folding makes rms_norm_eps 0\.1") as refusal:
        parse_config({**MINICPM, "rms_norm_eps": 0.1, "scale_depth": 0.75 * math.sqrt(3)}).folded()
    assert "--arch native" in (refusal.value.hint or "")
    assert spec.folded().rms_norm_eps < 0.1


@pytest.mark.parametrize("value", [0, -1, 3, 1 << 15, 64.0, "64", True, 10**5000], ids=shown)
def test_a_head_is_of_a_sane_number_of_channels(value: Any) -> None:
    with pytest.raises(BadConfig, match="head_dim"):
        parse_config({**LLAMA, "head_dim": value})


@pytest.mark.parametrize("value", [1e-4, 5e-324, 1e7, math.inf, "1", True, 10**5000], ids=shown)
@pytest.mark.parametrize("key", ["short_factor", "long_factor"])
def test_a_factor_that_stretches_by_nothing_sane_is_refused(key: str, value: Any) -> None:
    scaling = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0] * 8}
    parse_config({**LLAMA, "rope_scaling": scaling})
    with pytest.raises(BadConfig, match=f"{key} must be a list of 8 positive numbers"):
        parse_config({**LLAMA, "rope_scaling": {**scaling, key: [1.0] * 7 + [value]}})


@pytest.mark.parametrize(
    "value", ["kernels-community/xyz", {"a": "b"}, {"a": {"b": 1}}, [1], math.nan, {"a": 10**5000}]
)
@pytest.mark.parametrize("key", ["sparse_config", "mup_denominator"])
def test_what_is_written_as_it_stands_is_numbers(key: str, value: Any) -> None:
    with pytest.raises(BadConfig, match=f"{key} must be a number, or an object of numbers"):
        parse_config({**MINICPM, key: value})


def test_a_spread_of_training_is_carried_only_where_it_is_one() -> None:
    for value, wanted in ((0.1, 0.1), (1.0, 1.0), (0.0, 0.02), (math.nan, 0.02), ("0.1", 0.02), (10**5000, 0.02)):
        config = {**LLAMA, "initializer_range": value}
        assert architecture("llama").config(parse_config(config), config)["initializer_range"] == wanted


def test_integers_of_thousands_of_digits_in_any_place_are_a_refusal_or_nothing() -> None:
    for key in (*MINICPM, *SCALARS, "sliding_window", "attention_multiplier", "rope_scaling", "clip_qkv", "new_key"):
        for value in (10**5000, [10**5000], {"factor": 10**5000}):
            try:
                parse_config({**MINICPM, key: value})
            except QuantkitError as refusal:
                assert len(str(refusal)) < 400
