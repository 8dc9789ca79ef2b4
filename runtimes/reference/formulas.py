"""What the forward pass is made of, each step written from its formula, in float32.

Shapes: T tokens, S positions that are seen, H heads, G key/value heads, D channels per head. Sources: RoFormer (Su et
al. 2021) for the rotation, LongRoPE (Ding et al. 2024) for its rescaled frequencies, ggml for the rounding.
"""

from __future__ import annotations

import numpy as np

from quantkit.models.architectures._rope_spec import RopeSpec
from quantkit.tensors.scheme import PER_ROW


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """y = x / sqrt(mean(x^2) + eps) * weight, the mean over the last axis."""
    mean_square = np.mean(np.square(x), axis=-1, keepdims=True)  # (T, 1)
    normed: np.ndarray = x / np.sqrt(mean_square + np.float32(eps)) * weight
    return normed


def softmax(x: np.ndarray) -> np.ndarray:
    """exp(x) / sum(exp(x)) along the last axis, shifted by the maximum so that exp cannot overflow."""
    exponentials = np.exp(x - x.max(axis=-1, keepdims=True))
    shares: np.ndarray = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return shares


def silu(x: np.ndarray) -> np.ndarray:
    """x * sigmoid(x), as x * (1 + tanh(x / 2)) / 2, which cannot overflow."""
    gated: np.ndarray = x * (np.float32(0.5) * (np.float32(1) + np.tanh(x * np.float32(0.5))))
    return gated


def rope_angles(positions: np.ndarray, rope: RopeSpec, head_dim: int, context_length: int) -> np.ndarray:
    """Angle of each position and channel pair, (T, D/2): t / ext_i * base^(-2i/D).

    ext_i are LongRoPE's factors for a context of `context_length` tokens, 1 without them; base is theta, which dynamic
    NTK makes larger in contexts beyond the original one. In float32 and in the
    order of operations of OpenBMB's code (t * (1/ext_i), then times the frequency): far positions turn by thousands
    of radians, where the rounding of that order is part of the model.
    """
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)  # (D/2,)
    frequency = np.float32(1) / np.float32(rope.base(context_length, head_dim)) ** exponent
    factors = rope.factors(context_length)
    ext = np.array(factors, np.float32) if factors else np.ones(head_dim // 2, np.float32)
    angles: np.ndarray = positions.astype(np.float32)[:, None] * (np.float32(1) / ext) * frequency
    return angles


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Turn each pair (x_i, x_{i + D/2}) of x (heads, T, D) by its angle; cos and sin are (T, D/2)."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    return np.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Causal grouped-query attention: q (H, T, D) are the last T of the S positions of k (G, S, D) and v (G, S, U).

    softmax(q k^T / sqrt(D)) v per head; query head h reads key/value head h // (H / G). Returns (T, H * U).
    The H / G query heads of a group are taken together, so that their scores (H / G, T, S) are held at a time.
    """
    heads, new, head_dim = q.shape
    groups, total, _ = k.shape
    future = np.arange(total)[None, :] > np.arange(total - new, total)[:, None]  # (T, S)
    mixed = np.empty((groups, heads // groups * new, v.shape[-1]), np.float32)
    for group, queries in enumerate(q.reshape(groups, -1, head_dim)):  # (H / G * T, D)
        scores = queries @ k[group].T / np.float32(np.sqrt(head_dim))  # (H / G * T, S)
        causal = np.where(future, np.float32(-np.inf), scores.reshape(-1, new, total))  # (H / G, T, S)
        mixed[group] = softmax(causal).reshape(scores.shape) @ v[group]
    by_position: np.ndarray = mixed.reshape(heads, new, -1).swapaxes(0, 1)  # (T, H, U)
    return by_position.reshape(new, -1)


def round_to_int8(x: np.ndarray, run: int) -> np.ndarray:
    """Each run of so many values along the last axis as integers -127..127 times max|x| / 127, that scale in float16.

    What ggml's integer kernels do to their inputs: runs of 32 in `quantize_row_q8_0`, of 256 in `quantize_row_q8_K`.
    Rows that it does not divide are one run, and all are with `PER_ROW`, which is what BitNet's layers in transformers
    do. There and in runs of 256 the scale is float32, which is a 1000th less of a squared error.
    """
    width = x.shape[-1] if run == PER_ROW or x.shape[-1] % run else run
    blocks = x.reshape(*x.shape[:-1], -1, width)
    scale = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
    scale = scale.astype(np.float16).astype(np.float32)
    codes = np.rint(blocks / np.where(scale > 0, scale, np.float32(1)))
    rounded: np.ndarray = (codes * scale).reshape(x.shape)
    return rounded
