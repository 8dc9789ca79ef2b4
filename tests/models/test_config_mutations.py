"""Whatever a config.json says, it is read or refused at once; and what is read can be written and read again."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from quantkit.errors import QuantkitError
from quantkit.files.json_file import parse_json
from quantkit.models.architectures._config_keys import CODE, HARMLESS, LOOKED_AT, NEUTRAL, READ
from quantkit.models.recognition import config_notes, parse_config
from quantkit.models.spec import ModelSpec, architecture
from quantkit.runtimes.reference.formulas import rope_angles
from tests.models.architectures.test_rope_types import LLAMA, MINICPM, TYPES

MUTATIONS = 250
SECONDS = 2.0
SOURCES: dict[str, dict[str, Any]] = {
    "minicpm": {**MINICPM, "sparse_config": {"topk": 64}},
    "longrope": {**MINICPM, "rope_scaling": TYPES["longrope"], "mup_denominator": 32},
    "dynamic": {**MINICPM, "rope_scaling": TYPES["dynamic"], "tie_word_embeddings": False},
    "llama": LLAMA,
    "llama3": {**LLAMA, "rope_parameters": {**TYPES["llama3"], "rope_theta": 500000.0}},
    "yarn": {**LLAMA, "rope_scaling": TYPES["yarn, all keys"]},
}
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 16, 64, 10**6, 2**31, 2**63, -(2**63), 10**40, 10**5000, -(10**5000), 0.0, -0.0,
    5e-324, 2.5e-310, 1e-38, 1e-12, 0.1, 0.5, 1.5, 1e15, 1e38, 1.7e308, -1e308, math.nan, math.inf, -math.inf, "", "a",
    "silu", "llama", "minicpm", "dynamic", "\x1b[2J\n", "9" * 5000, "kernels-community/xyz", [], [[]], [0], [1] * 3,
    [1.0] * 32,
    [math.nan], [10**5000], ["full_attention"] * 3, {}, {"a": 1},
    {"rope_type": "yarn"}, {"x": 10**5000}, {"a": {"b": {}}},
]  # fmt: skip
KEYS = [
    *sorted(READ | LOOKED_AT | CODE | HARMLESS | NEUTRAL.keys()),
    "factor", "attention_factor", "short_factor", "long_factor", "low_freq_factor", "high_freq_factor", "beta_fast",
    "beta_slow", "mscale", "mscale_all_dim", "truncate", "rope_type", "type", "scale_emb", "scale_depth",
    "dim_model_base",
    "sparse_config", "mup_denominator", "full_attention", "a\nb", "",
]  # fmt: skip


def places(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The object and those inside it."""
    yield config
    yield from (value for value in config.values() if isinstance(value, dict))


def mutated(config: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """A copy with one to three keys changed, added or removed, at the top or inside an object."""
    copy = {key: dict(value) if isinstance(value, dict) else value for key, value in config.items()}
    for _ in range(rng.choice((1, 1, 2, 3))):
        place = rng.choice(list(places(copy)))
        key = rng.choice(list(place)) if place and rng.random() < 0.7 else rng.choice(KEYS)
        if rng.random() < 0.15:
            place.pop(key, None)
        elif rng.random() < 0.25 and isinstance(place.get(key), (int, float)) and abs(place[key]) < 1e99:
            place[key] = place[key] * rng.choice((0.5, 2, -1, 1e9, 1e-9, 1 + 1e-7))
        else:
            place[key] = rng.choice(VALUES)
    return copy


def spoilt(text: bytes, rng: random.Random) -> bytes:
    """The bytes with some flipped, removed, repeated or cut off."""
    data = bytearray(text)
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(data))
        kind = rng.randrange(4)
        if kind == 0:
            data[start] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[start : start + rng.randint(1, 20)]
        elif kind == 2:
            data[start:start] = data[start : start + rng.randint(1, 200)]
        else:
            data[start:start] = rng.choice((b"1e999", b"9" * 6000, b"[" * 5000, b'"\\ud800"', b"NaN", b"\xff", b"null"))
    return bytes(data or b" ")


def check(config: dict[str, Any]) -> bool:
    """Read a config as an inspection does; what is accepted is written, read again and turned by. Whether it was."""
    try:
        spec = parse_config(config)
        notes = config_notes(config)
    except QuantkitError as error:
        assert len(str(error)) < 1000
        assert "\n" not in str(error)
        return False
    assert all(note.isprintable() and len(note) < 1200 for note in notes)
    check_spec(spec, config)
    return True


def check_spec(spec: ModelSpec, config: dict[str, Any]) -> None:
    written = json.loads(json.dumps(architecture(spec.architecture).config(spec, config), allow_nan=False))
    assert parse_config(written) == spec
    if spec.head_dim <= 4096:
        angles = rope_angles(np.arange(40), spec.rope, spec.head_dim, 40)
        assert np.isfinite(angles).all()
    for value in (
        spec.residual_scale,
        spec.logit_divisor,
        spec.scale_emb,
        spec.rms_norm_eps,
        spec.rope.attention_factor,
    ):
        assert math.isfinite(value)
        assert np.float32(value) >= np.finfo(np.float32).tiny
    try:
        folded = spec.folded()
    except QuantkitError:
        return
    assert parse_config(architecture("llama").config(folded, config)) == folded


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES.keys())
def test_a_config_with_other_values_is_read_or_refused_at_once(source: dict[str, Any]) -> None:
    rng = random.Random(12)
    accepted = 0
    for _ in range(MUTATIONS):
        config = mutated(source, rng)
        before = time.monotonic()
        accepted += check(config)
        assert time.monotonic() - before < SECONDS
    assert 0 < accepted < MUTATIONS


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES.keys())
def test_spoilt_bytes_are_read_or_refused_at_once(source: dict[str, Any]) -> None:
    rng = random.Random(34)
    text = json.dumps(source).encode()
    for _ in range(MUTATIONS):
        data = spoilt(text, rng)
        before = time.monotonic()
        try:
            config = parse_json(data, "config.json")
        except QuantkitError as error:
            assert "\n" not in str(error)
            continue
        check(config)
        assert time.monotonic() - before < SECONDS
