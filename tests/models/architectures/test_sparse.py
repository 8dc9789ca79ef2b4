"""`sparse_config` is read strictly: every key by its name, every number in its range, OpenBMB's defaults besides."""

from __future__ import annotations

from typing import Any

import pytest

from quantkit.errors import BadConfig, UnsupportedModel
from quantkit.models.inspection import attention_memory, inspection
from quantkit.models.recognition import parse_config
from quantkit.models.spec import SparseSpec, architecture
from tests.support.memory import memory_checkpoint, tiny_config

PUBLISHED = {
    "kernel_size": 32, "kernel_stride": 16, "init_blocks": 1, "block_size": 64, "window_size": 2048, "topk": 64,
    "use_nope": False, "dense_len": 8192,
}  # fmt: skip


def parsed(sparse: Any, **changes: Any) -> SparseSpec | None:
    return parse_config(tiny_config(sparse_config=sparse, **changes)).sparse


def test_what_openbmb_publishes_are_the_defaults() -> None:
    assert parsed(PUBLISHED) == parsed({}) == SparseSpec()
    assert parse_config(tiny_config()).sparse is None
    assert parsed({"topk": 8, "use_nope": True, "dense_len": -1}) == SparseSpec(topk=8, use_nope=True, dense_len=-1)


@pytest.mark.parametrize("key", ["top_k", "sink_size", "a", "kernel"])
def test_an_unknown_key_is_refused_by_name(key: str) -> None:
    with pytest.raises(UnsupportedModel, match=f"sparse_config: '{key}' is not understood"):
        parsed({key: 4})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"topk": 0}, "topk must be an integer from 1"),
        ({"topk": 64.0}, "topk must be an integer"),
        ({"use_nope": 1}, "use_nope must be true or false"),
        ({"dense_len": -2}, "dense_len must be an integer from -1"),
        ({"kernel_size": 8}, "kernel_size must be an integer from 16"),
        ({"kernel_stride": 0}, "kernel_stride must be an integer from 1"),
        ({"block_size": 40}, "kernel_stride 16 does not divide block_size 40"),
        ({"init_blocks": -1}, "init_blocks must be"),
        (7, "sparse_config must be an object"),
        (True, "sparse_config must be an object"),
    ],
)
def test_a_number_that_makes_no_sense_is_refused(given: Any, said: str) -> None:
    with pytest.raises(BadConfig, match=said):
        parsed(given)


def test_it_is_no_other_model_and_none_when_folded() -> None:
    """Weights and dense function are the same; a Llama has no place for it."""
    spec, plain = parse_config(tiny_config(sparse_config=PUBLISHED)), parse_config(tiny_config())
    assert spec == plain
    assert spec.folded().sparse is None
    assert architecture("minicpm").config(spec, {"sparse_config": PUBLISHED})["sparse_config"] == PUBLISHED


def test_inspection_tells_what_is_seen_and_kept() -> None:
    facts = inspection(memory_checkpoint(tiny_config(sparse_config=PUBLISHED))).facts
    assert facts["sparse_attention"] == "64 of blocks of 64 tokens, and a window of 2048, dense below 8192"
    assert facts["tokens_attended"] == "0.75 of 8K, 0.188 of 32K, 0.0469 of 128K"
    assert "sparse attention" not in inspection(memory_checkpoint(tiny_config())).facts


def test_memory_of_the_8b_at_128k() -> None:
    """2 heads of 128 channels in 32 layers: 32 KiB a token; 8191 fine means and 2047 coarse ones in float32."""
    spec = parse_config(
        tiny_config(
            hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=2, sparse_config={}
        )
    )
    assert attention_memory(spec, 1 << 17) == (32768 << 17, (8191 + 2047) * 32768)
    assert [SparseSpec().means(length) for length in (31, 32, 127, 128)] == [0, 1, 6, 8]
