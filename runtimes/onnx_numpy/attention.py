"""`GroupQueryAttention` and `RotaryEmbedding` of ONNX Runtime: causal attention with a cache of keys and values.

B rows, S new tokens each, H heads, G key/value heads, D channels. `seqlens_k` says how many tokens each row has, less
one: rows of unlike length are padded on the right, and a token that comes later takes the place behind the last one
that counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from quantkit.errors import MalformedFile, UnsupportedModel
from quantkit.runtimes.onnx_numpy.call import Call, Operators, allow
from quantkit.runtimes.onnx_numpy.reductions import softmax, widened
from quantkit.runtimes.onnx_numpy.shapes import check_indices

FLOAT32 = np.dtype(np.float32)
QUERIES = 256
"""Tokens of a row that attend at a time."""
DEFAULTS: Mapping[str, object] = {
    "local_window_size": -1,
    "softcap": 0.0,
    "smooth_softmax": 0,
    "causal": 1,
    "sliding_window_cache": 0,
    "qk_output": 0,
    "k_quant_type": "NONE",
    "v_quant_type": "NONE",
    "kv_cache_bit_width": 0,
}
"""Attributes that are followed at these values alone."""


def rotated(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, *, interleaved: bool) -> np.ndarray:
    """Turn pairs of channels of x (..., S, D) by cos and sin (S, R / 2): the first R channels, others stay.

    Pairs are a channel and the one half of R further, or neighbours where `interleaved`.
    """
    half = cos.shape[-1]
    turned: np.ndarray = x.copy()
    if interleaved:
        first, second = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
    else:
        first, second = slice(0, half), slice(half, 2 * half)
    one, other = x[..., first], x[..., second]
    turned[..., first] = one * cos - other * sin
    turned[..., second] = other * cos + one * sin
    return turned


def _heads(x: np.ndarray, count: int) -> np.ndarray:
    """(B, S, count * D) as float32 (B, count, S, D)."""
    if x.ndim != 3 or count < 1 or x.shape[-1] % count:
        raise MalformedFile(f"an input of the shape {list(x.shape)} is not {count} heads")
    heads: np.ndarray = widened(x).reshape(*x.shape[:2], count, -1).swapaxes(1, 2)
    return heads


def _group_query_attention(call: Call) -> list[np.ndarray]:
    for name, plain in DEFAULTS.items():
        if call.attribute(name, plain) != plain:
            raise UnsupportedModel(f"attribute {name!r} other than {plain!r} is not evaluated")
    H, G = call.integer("num_heads"), call.integer("kv_num_heads")
    if G < 1 or H < 1 or H % G:
        raise MalformedFile(f"it has {H} heads and {G} key/value heads")
    query = call.value(0)
    q, k, v = (_heads(x, count) for x, count in zip(_three(call, H, G), (H, G, G), strict=True))
    lengths = _lengths(call, len(q))
    B, _, S, D = q.shape
    if k.shape != (B, G, S, D) or v.shape != k.shape:
        raise MalformedFile(f"queries, keys and values are {list(q.shape)}, {list(k.shape)} and {list(v.shape)}")
    (longest,) = call.integers(6)
    if not 0 < longest <= 1 << 24 or not all(0 <= length <= longest for length in lengths):
        raise MalformedFile(f"it has {longest} tokens in all, and rows of {lengths}")
    before = [0 if longest == S else length - S for length in lengths]
    positions = np.array([np.arange(first, first + S) for first in before])
    q, k = _turned(call, q, k, positions)
    keys, values = (_joined(call.optional(3 + i), new, before, longest, query.dtype) for i, new in enumerate((k, v)))
    scale = call.number("scale", 0.0) or 1 / math.sqrt(D)
    mixed = np.empty((B, S, H * D), np.float32)
    for row, first in enumerate(before):
        mixed[row] = _attend(q[row], widened(keys[row]), widened(values[row]), first, scale)
    return [mixed.astype(query.dtype, copy=False), keys, values]


def _three(call: Call, H: int, G: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries, keys and values, which may lie in one input, behind each other."""
    query, key, value = call.value(0), call.optional(1), call.optional(2)
    if key is not None and value is not None:
        return query, key, value
    if key is not None or value is not None or query.ndim != 3 or query.shape[-1] % (H + 2 * G):
        raise MalformedFile(f"its input of the shape {list(query.shape)} is not queries, keys and values")
    D = query.shape[-1] // (H + 2 * G)
    return query[..., : H * D], query[..., H * D : (H + G) * D], query[..., (H + G) * D :]


def _lengths(call: Call, rows: int) -> list[int]:
    """Tokens of each row with those before."""
    lengths = [length + 1 for length in call.integers(5)]
    if len(lengths) != rows:
        raise MalformedFile(f"it has lengths of {len(lengths)} rows, and {rows} rows")
    return lengths


def _turned(call: Call, q: np.ndarray, k: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    cos, sin = call.optional(7), call.optional(8)
    interleaved = bool(call.integer("rotary_interleaved", 0))
    if not call.integer("do_rotary", 0):
        return q, k
    if cos is None or sin is None or cos.ndim != 2 or cos.shape != sin.shape or 2 * cos.shape[1] > q.shape[-1]:
        raise MalformedFile("its tables of cosines and sines are missing, or not for these heads")
    # Negative ones are of padding, which nobody looks at.
    check_indices(positions, len(cos))
    C, S = (widened(table)[positions][:, None] for table in (cos, sin))  # (B, 1, S, R / 2)
    return rotated(q, C, S, interleaved=interleaved), rotated(k, C, S, interleaved=interleaved)


def _joined(past: np.ndarray | None, new: np.ndarray, before: list[int], longest: int, dtype: np.dtype) -> np.ndarray:
    """The cache with the new keys or values in their places, (B, G, longest, D) or longer if it was."""
    B, G, S, D = new.shape
    if past is not None and (past.ndim != 4 or (*past.shape[:2], past.shape[3]) != (B, G, D) or past.dtype != dtype):
        raise MalformedFile(f"its cache is {past.dtype} {list(past.shape)} for {dtype} {list(new.shape)}")
    kept = past.shape[2] if past is not None else 0
    room = max(kept, longest)
    allow((B, G, room, D), dtype)
    joined = np.zeros((B, G, room, D), dtype)
    for row, first in enumerate(before):
        if not 0 <= first <= kept or first + S > room:
            raise MalformedFile(f"row {row} has {first} tokens before, and a cache of {kept}")
        if past is not None:
            joined[row, :, :first] = past[row, :, :first]
        joined[row, :, first : first + S] = new[row].astype(dtype)
    return joined


def _attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, first: int, scale: float) -> np.ndarray:
    """One row: q (H, S, D) on its k and v (G, room, D), of which token i sees those up to first + i; (S, H * D)."""
    (H, S, D), G = q.shape, len(k)
    grouped = q.reshape(G, H // G, S, D)
    mixed = np.empty((G, H // G, S, D), np.float32)
    for start in range(0, S, QUERIES):
        run = slice(start, min(start + QUERIES, S))
        seen = first + run.stop
        scores = np.matmul(grouped[:, :, run], k[:, None, :seen].swapaxes(-1, -2)) * np.float32(scale)
        ahead = np.arange(seen) > np.arange(first + run.start, seen)[:, None]
        scores[..., ahead] = -np.inf
        mixed[:, :, run] = np.matmul(softmax(scores), v[:, None, :seen])
    rows: np.ndarray = mixed.transpose(2, 0, 1, 3).reshape(S, H * D)
    return rows


def _rotary_embedding(call: Call) -> list[np.ndarray]:
    """`com.microsoft.RotaryEmbedding` of (B, H, S, D), or of (B, S, H * D) where `num_heads` is given."""
    x, places, cos, sin = (call.value(index) for index in range(4))
    for name, plain in {"rotary_embedding_dim": 0, "is_packed_batching": 0, "scale": 1.0}.items():
        if call.attribute(name, plain) != plain:
            raise UnsupportedModel(f"attribute {name!r} other than {plain!r} is not evaluated")
    heads = call.integer("num_heads", 0)
    wide = _heads(x, heads or x.shape[-1] // (2 * cos.shape[-1])) if x.ndim == 3 else widened(x)
    if wide.ndim != 4 or cos.shape != sin.shape or cos.ndim != 2 or 2 * cos.shape[1] != wide.shape[-1]:
        raise MalformedFile(f"tables of {list(cos.shape)} do not turn {list(wide.shape)}")
    B, _, S, _ = wide.shape
    positions = places.reshape(-1, 1) + np.arange(S) if places.size == 1 else places
    if positions.shape not in ((1, S), (B, S)):
        raise MalformedFile(f"positions of {list(places.shape)} for {B} rows of {S}")
    check_indices(positions, len(cos))
    C, N = (widened(table)[positions][:, None] for table in (cos, sin))
    turned = rotated(wide, C, N, interleaved=bool(call.integer("interleaved", 0)))
    turned = turned.swapaxes(1, 2).reshape(x.shape) if x.ndim == 3 else turned
    return [turned.astype(x.dtype, copy=False)]


ATTENTION: Operators = {
    ("com.microsoft", "GroupQueryAttention"): _group_query_attention,
    ("com.microsoft", "RotaryEmbedding"): _rotary_embedding,
}
