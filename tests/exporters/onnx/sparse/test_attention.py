"""Sparse attention of one layer as a graph against the reference, on random configurations and on every edge."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
import onnx

from quantkit.exporters.onnx.sparse import attention
from quantkit.models.spec import SparseSpec
from quantkit.runtimes.reference.sparse.attention import SparseAttention
from quantkit.runtimes.reference.sparse.variants import DEFAULT
from tests.support.onnx_sparse import Layer, attention_graph, engine, selection_graph
from tests.support.sparse_definition import Definition

CLOSE = 1e-5
TIED = 1e-6
"""Scores of blocks that are nearer than this may change places."""
EDGES = SparseSpec(window_size=64, topk=1, dense_len=300)
"""The published kernels and blocks, with less to choose."""


def numbers(rng: np.random.Generator) -> SparseSpec:
    """A `sparse_config` of small numbers, kernels that are no multiple of the stride among them."""
    stride = int(rng.choice([1, 2, 3, 4]))
    block = stride * int(rng.choice([1, 2, 4]))
    return SparseSpec(
        kernel_size=stride * int(rng.choice([1, 2, 2, 2, 3])) + int(rng.choice([0, 0, 0, 1])),
        kernel_stride=stride,
        init_blocks=int(rng.integers(0, 3)),
        block_size=block,
        window_size=int(rng.integers(0, 5 * block)),
        topk=int(rng.integers(1, 6)),
        dense_len=int(rng.choice([-1, -1, 0, 10, 30])),
    )


def arrays(rng: np.random.Generator, tokens: int, groups: int, ratio: int, channels: int) -> list[np.ndarray]:
    shapes = ((groups * ratio, tokens, channels), (groups, tokens, channels), (groups, tokens, channels))
    return [rng.standard_normal(shape).astype(np.float32) * 1.5 for shape in shapes]


def worst(layer: Layer, reference: SparseAttention, qkv: list[np.ndarray], calls: list[int], prompt: int) -> float:
    """The largest difference, where the first `prompt` tokens are a prompt and the rest are decoded."""
    done, error = 0, 0.0
    for new in calls:
        part = [x[:, done : done + new] for x in qkv]
        of = prompt if done < prompt else None
        error = max(error, float(np.abs(layer.attend(*part, of) - reference.attend(*part, prompt=of)).max()))
        done += new
    return error


def pieces(rng: np.random.Generator, tokens: int, prompt: int) -> list[int]:
    """Calls of a prompt in pieces, then of a token each."""
    calls: list[int] = []
    while sum(calls) < prompt:
        calls.append(min(int(rng.choice([1, 2, 5, 17, 40])), prompt - sum(calls)))
    return calls + [1] * (tokens - prompt)


@pytest.mark.parametrize("level", ["all", "none"])
@pytest.mark.parametrize("seed", range(24))
def test_it_is_what_the_reference_does(seed: int, level: str) -> None:
    rng = np.random.default_rng(seed)
    sparse, groups, ratio = numbers(rng), int(rng.integers(1, 4)), int(rng.choice([1, 2, 3, 7, 16]))
    tokens = int(rng.integers(1, 90))
    qkv = arrays(rng, tokens, groups, ratio, 8)
    model = attention_graph(sparse, groups * ratio, groups, 8)
    onnx.checker.check_model(model, full_check=True)
    layer = Layer(engine(model, level), sparse, groups, 8, tokens + int(rng.integers(0, 20)))
    prompt = int(rng.integers(1, tokens + 1))
    reference = SparseAttention(sparse, DEFAULT, groups, 8)
    assert worst(layer, reference, qkv, pieces(rng, tokens, prompt), prompt) <= CLOSE, sparse


@pytest.mark.parametrize("seed", range(6))
def test_tokens_that_are_taken_a_few_at_a_time_are_each_taken_once(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "SCORES", 1 << 10)
    monkeypatch.setattr(attention, "TOKENS", 3)
    rng = np.random.default_rng(seed)
    sparse = replace(numbers(rng), dense_len=(-1, 100)[seed % 2])
    qkv = arrays(rng, 80, 2, 4, 8)
    layer = Layer(engine(attention_graph(sparse, 8, 2, 8)), sparse, 2, 8, 80)
    assert worst(layer, SparseAttention(sparse, DEFAULT, 2, 8), qkv, [47, 32, 1], 79) <= CLOSE


def test_a_prompt_in_pieces_is_decided_as_a_whole() -> None:
    rng = np.random.default_rng(5)
    session = engine(attention_graph(EDGES, 4, 1, 16))
    for prompt, calls in ((400, [250, 100, 50]), (299, [250, 49]), (300, [250, 50])):
        layer, reference = Layer(session, EDGES, 1, 16, 400), SparseAttention(EDGES, DEFAULT, 1, 16)
        assert worst(layer, reference, arrays(rng, prompt, 1, 4, 16), calls, prompt) <= CLOSE, prompt


@pytest.mark.parametrize("kernel", [1, 2])
def test_every_mean_is_seen_in_decoding_however_near_they_are(kernel: int) -> None:
    """A stride of one, where every length leaves the rest of a kernel that rounds."""
    rng = np.random.default_rng(6)
    sparse = SparseSpec(
        kernel_size=kernel, kernel_stride=1, init_blocks=0, block_size=2, window_size=0, topk=2, dense_len=-1
    )
    session = engine(attention_graph(sparse, 4, 1, 8))
    for _ in range(4):
        layer, reference = Layer(session, sparse, 1, 8, 40), SparseAttention(sparse, DEFAULT, 1, 8)
        assert worst(layer, reference, arrays(rng, 40, 1, 4, 8), [5, *[1] * 35], 5) <= CLOSE


@pytest.mark.parametrize("dense_len", [-1, 300])
def test_every_edge_of_the_published_kernels(dense_len: int) -> None:
    rng = np.random.default_rng(1)
    sparse = replace(EDGES, dense_len=dense_len)
    session = engine(attention_graph(sparse, 16, 1, 16))
    lengths = (1, 15, 16, 17, 31, 32, 33, 47, 63, 64, 65, 127, 128, 129, 191, 192, 255, 299, 300, 303, 319, 383)
    for length in lengths:
        qkv = arrays(rng, length + 2, 1, 16, 16)
        layer, reference = Layer(session, sparse, 1, 16, 400), SparseAttention(sparse, DEFAULT, 1, 16)
        assert worst(layer, reference, qkv, [length, 1, 1], length) <= CLOSE, length


def test_decoding_crosses_the_length_from_which_on_it_is_sparse() -> None:
    rng, sparse = np.random.default_rng(2), EDGES
    qkv = arrays(rng, 700, 2, 8, 16)
    layer = Layer(engine(attention_graph(sparse, 16, 2, 16)), sparse, 2, 16, 700)
    reference = SparseAttention(sparse, DEFAULT, 2, 16)
    assert worst(layer, reference, qkv, [200] + [1] * 500, 200) <= CLOSE
    for part, means in (("fine", reference.memory.fine), ("coarse", reference.memory.coarse)):
        kept = np.stack([means.rows.slice(group, 0, means.rows.length) for group in range(2)])
        np.testing.assert_allclose(layer.buffers[part][:, : kept.shape[1]], kept, atol=1e-6)
        assert not layer.buffers[part][:, kept.shape[1] :].any()


@pytest.mark.parametrize("prompt", [None, 400, 399, 383])
def test_the_same_blocks_are_chosen(prompt: int | None) -> None:
    """But where the reference scores them alike."""
    rng, sparse, groups, ratio = np.random.default_rng(3), EDGES, 2, 4
    tokens = prompt or 401
    q, k, v = arrays(rng, tokens, groups, ratio, 16)
    told: list[tuple[int, int, np.ndarray]] = []
    reference = SparseAttention(sparse, DEFAULT, groups, 16, observer=lambda *choice: told.append(choice))
    calls = [tokens] if prompt else [tokens - 1, 1]
    done = 0
    for new in calls:
        reference.attend(*(x[:, done : done + new] for x in (q, k, v)), prompt=prompt if prompt else None)
        done += new
    first = tokens - calls[-1]
    wanted = {group: blocks for group, at, blocks in told if at == first}
    found = _chosen(sparse, reference, q[:, first:], first, prompt)
    definition = Definition({name: getattr(sparse, name) for name in sparse.__slots__}, "minicpm4.1")
    means = [definition.means(k.astype(np.float64), times) for times in (1, 4)]
    for group in range(groups):
        for row, position in enumerate(range(first, tokens)):
            own = position // sparse.block_size
            ours = {int(b) for b in found[row, group] if b <= own}
            theirs = set(np.flatnonzero(wanted[group][row]).tolist())
            if ours != theirs:
                queries = q[group * ratio : (group + 1) * ratio, position].astype(np.float64)
                scores = definition.block_scores(queries, (means[0][group], means[1][group]), position, prompt, first)
                assert np.ptp([scores[block] for block in ours ^ theirs]) <= TIED, (group, position)


def _chosen(
    sparse: SparseSpec, reference: SparseAttention, q: np.ndarray, first: int, prompt: int | None
) -> np.ndarray:
    """By the graph, [T, G, k], from what the reference remembers."""
    (heads, new, head_dim), groups = q.shape, reference.memory.keys.groups
    blocks = -(-(first + new) // sparse.block_size)
    rows = {"fine": blocks * sparse.block_size // sparse.kernel_stride, "coarse": blocks}
    buffers = {part: np.zeros((groups, count, head_dim), np.float32) for part, count in rows.items()}
    for part, means in (("fine", reference.memory.fine), ("coarse", reference.memory.coarse)):
        for group in range(groups):
            buffers[part][group, : means.rows.length] = means.rows.slice(group, 0, means.rows.length)
    given = {
        "q": np.ascontiguousarray(q.swapaxes(0, 1)).reshape(new, groups, heads // groups, head_dim),
        "positions": np.arange(first, first + new),
        "past_length": np.array([first]),
        "prompt_length": np.array([prompt or 0]),
        **buffers,
    }
    (found,) = engine(selection_graph(sparse, heads, groups, head_dim)).run(["chosen"], given)
    chosen: np.ndarray = found
    return chosen
