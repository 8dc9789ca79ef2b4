"""The size of the context, which decides LongRoPE's factors in llama.cpp."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantkit.errors import BadOption, EngineFailed
from quantkit.models.recognition import parse_config
from quantkit.runtimes.llama_cpp.context import GRANULE, context_size
from tests.support.memory import tiny_config

FILE = Path("m.gguf")


def spec(*, context: int, original: int | None = None):
    if original is None:
        return parse_config(tiny_config(max_position_embeddings=context))
    scaling = {
        "rope_type": "longrope",
        "short_factor": [1.0] * 8,
        "long_factor": [2.0] * 8,
        "original_max_position_embeddings": original,
    }
    return parse_config(tiny_config(max_position_embeddings=context, rope_scaling=scaling))


@pytest.mark.parametrize(
    ("context", "length", "expected"),
    [(64, 1, 256), (64, 64, 256), (1000, 10, 1024), (8192, 10, 1024), (8192, 1024, 1024), (8192, 1025, 2048)],
)
def test_it_doubles_until_the_sequence_fits_and_ends_with_the_model(context, length, expected):
    assert context_size(FILE, spec(context=context), length, smallest=1024) == expected


@pytest.mark.parametrize("original", [256, 300, 1024, 4096, 5000])
@pytest.mark.parametrize("spare", [0, 1])
def test_it_gives_every_length_its_own_factors_or_says_that_none_does(original, spare):
    model = spec(context=16384, original=original)
    refused = []
    for length in [*range(1, 5300, 7), original - 1, original, original + 1, 16384 - spare]:
        try:
            size = context_size(FILE, model, length, smallest=1024, spare=spare)
        except EngineFailed as error:
            assert "rounds contexts up" in str(error)
            refused.append(length)
            continue
        rounded = -(-size // GRANULE) * GRANULE
        assert rounded >= length + spare
        assert model.rope.factors(rounded) == model.rope.factors(length)
    assert all(original // GRANULE * GRANULE < length + spare <= original + spare for length in refused)


def test_nothing_and_too_much_are_refused():
    with pytest.raises(BadOption, match="no token ids"):
        context_size(FILE, spec(context=64), 0, smallest=1024)
    with pytest.raises(BadOption, match="65 tokens exceeds the model's context of 64"):
        context_size(FILE, spec(context=64), 65, smallest=1024)
    with pytest.raises(BadOption, match="64 tokens and 1 to come"):
        context_size(FILE, spec(context=64), 64, smallest=1024, spare=1)
