"""How much time and memory llama.cpp may take for a request: far more than a correct one needs, and not endless.

Memory counts what the engine holds of its own: the model file is mapped and costs nothing, but weights may be copied
into another order. Each bound is a sum over what is held at a time:

    a process with numpy and the library, small buffers          1 GiB
    the file's metadata and weights as the engine keeps them     4 times the file
    keys and values, float32                                     8 bytes x blocks x key-value channels x context
    attention scores, in three copies                            12 bytes x heads x rows x context
    what one part of a sequence computes                         16 bytes x rows x (vocabulary + 4 MLP widths)
    logits and stages of all tokens, twice                       8 bytes x tokens x (vocabulary + blocks x width)
    the server's log-probs, as JSON                              8 kB x vocabulary

Time is that of a machine that reads 20 MB of the file a second while it loads, and 100 MB of weights a second while it
evaluates, which are read once for each token.
"""

from __future__ import annotations

from pathlib import Path

from quantkit.models.spec import ModelSpec
from quantkit.runtimes._engine_process import Allowance

SECONDS = 120.0
"""Of every request, whatever it reads."""
LOADED_PER_SECOND = 20e6
READ_PER_SECOND = 100e6
SECONDS_PER_TOKEN = 0.2
"""On top of reading weights: attention, and the log-probs of a large vocabulary through the server."""
PROCESS = 1 << 30
ROWS = 1024
"""Tokens that are evaluated at a time, at most."""
SCORES = 4 << 20
"""Of one head at a time, at most; the server, which takes 512 tokens at a time, may hold more."""


def loading(path: Path, spec: ModelSpec, n_ctx: int) -> Allowance:
    """For loading the file and making a context of `n_ctx` tokens."""
    seconds = SECONDS + path.stat().st_size / LOADED_PER_SECOND
    return Allowance("loading the model", seconds, _memory(path, spec, n_ctx, 0))


def evaluating(path: Path, spec: ModelSpec, n_ctx: int, tokens: int) -> Allowance:
    """For what `tokens` tokens in a context of `n_ctx` predict."""
    seconds = SECONDS + tokens * (path.stat().st_size / READ_PER_SECOND + SECONDS_PER_TOKEN)
    return Allowance(f"evaluating {tokens} tokens", seconds, _memory(path, spec, n_ctx, tokens))


def tokenizing(path: Path, spec: ModelSpec, n_ctx: int, text: str) -> Allowance:
    """For turning a text into tokens."""
    return Allowance("tokenizing", SECONDS, _memory(path, spec, n_ctx, 0) + 64 * len(text))


def _memory(path: Path, spec: ModelSpec, n_ctx: int, tokens: int) -> int:
    blocks, vocabulary = spec.num_hidden_layers, spec.vocab_size
    kept = 8 * blocks * spec.num_key_value_heads * spec.head_dim * n_ctx
    scores = 12 * spec.num_attention_heads * max(SCORES + n_ctx, ROWS // 2 * n_ctx)
    part = 16 * ROWS * (vocabulary + 4 * spec.intermediate_size)
    answer = 8 * tokens * (vocabulary + (blocks + 3) * spec.hidden_size) + 8000 * vocabulary
    return PROCESS + 4 * path.stat().st_size + kept + scores + part + answer
