"""Sparse attention against its definition in plain loops, on random configurations and on every edge."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from quantkit.errors import BadOption
from quantkit.models.inspection import attention_costs
from quantkit.models.spec import SparseSpec
from quantkit.runtimes.reference.formulas import attend
from quantkit.runtimes.reference.sparse.attention import SparseAttention
from quantkit.runtimes.reference.sparse.variants import VARIANTS, variant_named
from tests.support.memory import memory_checkpoint, tiny_config
from tests.support.sparse_definition import Definition, splits

CLOSE = 1e-5
CLEAR = 1e-5
"""Of the score of a block: closer ones may change places between float32 and float64."""
NAMES = [variant.name for variant in VARIANTS]


def numbers(rng: np.random.Generator) -> dict[str, int]:
    """A `sparse_config` of small numbers."""
    stride = int(rng.choice([1, 2, 3, 4]))
    block = stride * int(rng.choice([1, 2, 4]))
    return {
        "kernel_size": stride * int(rng.choice([1, 2, 2, 2, 3])),
        "kernel_stride": stride,
        "init_blocks": int(rng.integers(0, 3)),
        "block_size": block,
        "window_size": block * int(rng.integers(1, 5)) + int(rng.integers(0, block)),
        "topk": int(rng.integers(1, 6)),
        "dense_len": int(rng.choice([-1, -1, 0, 10, 30])),
    }


def arrays(rng: np.random.Generator, tokens: int, groups: int, ratio: int, channels: int) -> list[np.ndarray]:
    shapes = ((groups * ratio, tokens, channels), (groups, tokens, channels), (groups, tokens, channels))
    return [rng.standard_normal(shape).astype(np.float32) * 1.5 for shape in shapes]


def fast(config: dict[str, int], name: str, qkv: list[np.ndarray], calls: list[int], **given: object) -> np.ndarray:
    q, k, v = qkv
    attention = SparseAttention(SparseSpec(**config), variant_named(name), len(k), k.shape[-1])  # type: ignore[arg-type]
    prompt = given.get("prompt")
    unrotated = given.get("unrotated")
    out, past = [], 0
    for new in calls:
        part = slice(past, past + new)
        past += new
        pair = None if unrotated is None else tuple(x[:, part] for x in unrotated)  # type: ignore[attr-defined]
        of = prompt if prompt is not None and past <= prompt else None  # type: ignore[operator]
        out.append(attention.attend(q[:, part], k[:, part], v[:, part], unrotated=pair, prompt=of))  # type: ignore[arg-type]
    return np.concatenate(out)


def check(
    config: dict[str, int], name: str, qkv: list[np.ndarray], calls: list[int], every: int = 1, **given: object
) -> int:
    """Hold the one against the other where the choice is clear; returns how many tokens' are not.

    every: of so many tokens one is computed by the definition.
    """
    wanted, clear = Definition(config, name).outputs(*qkv, calls, every=every, **given)  # type: ignore[arg-type]
    found = fast(config, name, qkv, calls, **given)[::every]
    error = np.abs(found - wanted).max(axis=1)
    assert error[clear > CLEAR].max(initial=0) <= CLOSE, (config, name, calls, given.keys())
    return int((clear <= CLEAR).sum())


@pytest.mark.parametrize("seed", range(10))
def test_it_is_what_is_defined(seed: int) -> None:
    rng = np.random.default_rng(seed)
    unclear = total = 0
    for _ in range(30):
        config, name = numbers(rng), str(rng.choice(NAMES))
        if name == "minicpm4.1" and rng.random() < 0.2:
            config["window_size"] = int(rng.integers(0, config["block_size"]))
        tokens = int(rng.integers(1, 90))
        calls = list(splits(tokens, int(rng.integers(1, tokens + 1)), int(rng.choice([1, 1, 2, 7, 30]))))
        qkv = arrays(
            rng, tokens, int(rng.integers(1, 3)), int(rng.choice([1, 2, 3, 4, 16], p=[0.3, 0.3, 0.2, 0.1, 0.1])), 4
        )
        given = {}
        if rng.random() < 0.3:
            given["unrotated"] = tuple(arrays(rng, tokens, len(qkv[1]), len(qkv[0]) // len(qkv[1]), 4)[:2])
            config["use_nope"] = True
        if rng.random() < 0.3:
            given["prompt"] = int(np.cumsum(calls)[rng.integers(len(calls))])
        unclear += check(config, name, qkv, calls, **given)
        total += tokens
    assert unclear <= total / 100


DEFAULT = {
    "kernel_size": 32, "kernel_stride": 16, "init_blocks": 1, "block_size": 64, "window_size": 64, "topk": 2,
    "dense_len": -1,
}  # fmt: skip
"""OpenBMB's numbers, with a small window and few blocks so that short contexts have something to choose."""


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tokens", [1, 15, 31, 32, 33, 47, 48, 63, 64, 65, 127, 128, 129, 191, 192, 255, 271, 320])
def test_every_length_around_a_kernel(tokens: int, name: str) -> None:
    qkv = arrays(np.random.default_rng(tokens), tokens, 2, 2, 4)
    unclear = check(DEFAULT, name, qkv, [tokens])
    unclear += check(DEFAULT, name, qkv, [max(1, tokens - 3), *[1] * min(3, tokens - 1)])
    assert unclear <= 2


@pytest.mark.parametrize("name", NAMES)
def test_decoding_passes_from_dense_to_sparse(name: str) -> None:
    """The means of what was dense are there when the context is long enough for them."""
    qkv = arrays(np.random.default_rng(5), 420, 1, 2, 4)
    assert check({**DEFAULT, "dense_len": 300}, name, qkv, [270, *[1] * 150]) <= 4


@pytest.mark.parametrize(("name", "tokens"), [("minicpm4.1", 5000), ("minicpm4", 2300), ("cpm.cu", 2600)])
def test_a_long_context(name: str, tokens: int) -> None:
    """More than a run of positions, whole and in pieces, the last ones decoded."""
    qkv = arrays(np.random.default_rng(tokens), tokens, 1, 1, 4)
    config = {**DEFAULT, "window_size": 256, "topk": 6}
    assert check(config, name, qkv, [tokens - 1000, 995, 1, 1, 1, 1, 1], every=19) <= 2


@pytest.mark.parametrize("tokens", [100, 111, 112, 127])
def test_a_prompt_in_pieces_is_the_prompt(tokens: int) -> None:
    """Also where its length is one short of a stride, by which the published kernel sees one mean less."""
    qkv = arrays(np.random.default_rng(tokens), tokens, 2, 4, 8)
    config = {**DEFAULT, "kernel_size": 8, "kernel_stride": 4, "block_size": 8, "window_size": 16, "dense_len": 90}
    whole = fast(config, "minicpm4.1", qkv, [tokens])
    for pieces in (list(splits(tokens, 1, 17)), list(splits(tokens, 60, 13)), [tokens - 1, 1]):
        np.testing.assert_allclose(fast(config, "minicpm4.1", qkv, pieces, prompt=tokens), whole, atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("calls", [[97], [50, 30, 17], [90, *[1] * 7]])
def test_with_every_block_chosen_it_is_dense_attention(name: str, calls: list[int]) -> None:
    q, k, v = arrays(np.random.default_rng(1), 97, 2, 4, 8)
    config = {**DEFAULT, "kernel_size": 4, "kernel_stride": 2, "block_size": 8, "window_size": 16, "topk": 20}
    if name == "cpm.cu":  # what its window and its selection leave between them is never seen
        config["window_size"] = 1 << 10
    np.testing.assert_allclose(fast(config, name, [q, k, v], calls), attend(q, k, v), atol=CLOSE)


def test_without_a_window_the_variants_that_add_it_are_refused() -> None:
    for name in ("minicpm4", "cpm.cu"):
        with pytest.raises(BadOption, match="needs a window of a block"):
            SparseAttention(SparseSpec(window_size=63), variant_named(name), 1, 4)
    SparseAttention(SparseSpec(window_size=0), variant_named("minicpm4.1"), 1, 4)
    with pytest.raises(BadOption, match="no variant 'x'"):
        variant_named("x")


def test_means_are_taken_once() -> None:
    """Decoding averages the keys of new means, and never those of old ones again."""
    q, k, v = arrays(np.random.default_rng(2), 700, 1, 2, 4)
    attention = SparseAttention(SparseSpec(**DEFAULT), variant_named("minicpm4.1"), 1, 4)
    attention.attend(q[:, :500], k[:, :500], v[:, :500])
    for t in range(500, 700):
        attention.attend(q[:, t : t + 1], k[:, t : t + 1], v[:, t : t + 1])
    fine, coarse = attention.memory.fine, attention.memory.coarse
    assert (fine.rows.length, coarse.rows.length) == (700 // 16 - 1, 700 // 64 - 1)
    assert (fine.averaged, coarse.averaged) == (32 * fine.rows.length, 128 * coarse.rows.length)
    for means in (fine, coarse):
        wanted = [k[0, i * means.stride :][: means.kernel].mean(axis=0) for i in range(means.rows.length)]
        np.testing.assert_allclose(means.rows.slice(0, 0, means.rows.length), wanted, atol=1e-6)


def test_a_block_without_a_mean_is_not_chosen_where_means_are_of_the_history() -> None:
    """Of the history's last block there is one token, which no mean holds yet; the next call lies behind."""
    config = {**DEFAULT, "kernel_size": 4, "kernel_stride": 2, "block_size": 4, "window_size": 4, "topk": 20}
    qkv = arrays(np.random.default_rng(6), 33, 1, 2, 4)
    assert check(config, "cpm.cu", qkv, [17, 16]) == 0


@pytest.mark.parametrize("name", NAMES)
def test_only_the_last_tokens_may_ask(name: str) -> None:
    """The others are remembered all the same, in the prompt and in what comes behind it."""
    q, k, v = arrays(np.random.default_rng(7), 90, 2, 2, 8)
    config = {**DEFAULT, "kernel_size": 4, "kernel_stride": 2, "block_size": 4, "window_size": 8, "dense_len": 20}
    whole, last = (SparseAttention(SparseSpec(**config), variant_named(name), 2, 8) for _ in range(2))
    for part in (slice(0, 60), slice(60, 61), slice(61, 90)):
        wanted = whole.attend(q[:, part], k[:, part], v[:, part], prompt=90)
        asking = 0 if part.start == 0 else 1
        found = last.attend(q[:, part.stop - asking : part.stop], k[:, part], v[:, part], prompt=90)
        assert found.shape == (asking, 4 * 8)
        np.testing.assert_allclose(found, wanted[len(wanted) - asking :], atol=1e-6)


def test_memory_of_128k_is_what_was_planned() -> None:
    """Keys, values and means that are kept, and the keys that later means need: within two in a hundred."""
    spec = replace(memory_checkpoint(tiny_config(sparse_config={}, num_hidden_layers=1)).spec, head_dim=4)
    attention = SparseAttention(SparseSpec(), variant_named("minicpm4.1"), 2, 4, dtype=np.float16)
    k = np.random.default_rng(0).standard_normal((2, 1 << 17, 4)).astype(np.float32)
    attention.attend(k[:, :0].repeat(2, axis=0), k, k)
    attention.attend(k[:, :1].repeat(2, axis=0), k[:, :1], k[:, :1])
    cost = attention_costs(spec)[-1]
    assert cost.length == 1 << 17
    tails = sum(means._tail.nbytes for means in (attention.memory.fine, attention.memory.coarse))
    assert attention.memory.nbytes + tails == pytest.approx(cost.keys_and_values + cost.means, rel=0.02)
    assert attention.memory.keys.nbytes * 2 == pytest.approx(cost.keys_and_values, rel=0.02)
    means = attention.memory.fine.rows.nbytes + attention.memory.coarse.rows.nbytes
    assert means + tails == pytest.approx(cost.means, rel=0.02)
