"""How much time and memory OpenVINO may take for a request: far more than a correct one needs, and not endless.

Memory counts what the engine holds of its own. Each bound is a sum over what is held at a time:

    a process with numpy and the library, small buffers          1 GiB
    the weights as they lie, in another order, and unpacked      4 times the .bin, and 16 bytes a weight of the largest
    keys and values, float32, grown by copying                   24 bytes x blocks x key-value channels x tokens
    attention scores and the mask, in three copies               12 bytes x (heads + 1) x rows x tokens
    what one step computes                                       16 bytes x rows x (vocabulary + 4 MLP widths)
    logits and stages of all tokens, twice                       8 bytes x tokens x (vocabulary + blocks x width)

Time is that of a machine that reads 20 MB of the .bin a second while it loads, and 100 MB of weights a second while it
evaluates, which are read once for each token.
"""

from __future__ import annotations

from quantkit.models.spec import ModelSpec
from quantkit.runtimes._engine_process import Allowance

SECONDS = 120.0
"""Of every request, whatever it reads."""
LOADED_PER_SECOND = 20e6
READ_PER_SECOND = 100e6
PROCESS = 1 << 30


def loading(spec: ModelSpec, size: int) -> Allowance:
    """For loading and compiling a model whose .bin has `size` bytes."""
    return Allowance("loading the model", SECONDS + size / LOADED_PER_SECOND, _memory(spec, size, 0, 0))


def evaluating(spec: ModelSpec, size: int, tokens: int, rows: int) -> Allowance:
    """For what `tokens` tokens predict, of which `rows` are computed at a time."""
    seconds = SECONDS + tokens * (0.1 + size / READ_PER_SECOND)
    return Allowance(f"evaluating {tokens} tokens", seconds, _memory(spec, size, tokens, rows))


def tokenizing(spec: ModelSpec, size: int, text: str) -> Allowance:
    """For turning a text into tokens."""
    memory = _memory(spec, size, 0, 0) + 4096 * spec.vocab_size + 256 * len(text)
    return Allowance("tokenizing", SECONDS, memory)


def _memory(spec: ModelSpec, size: int, tokens: int, rows: int) -> int:
    vocabulary, blocks = spec.vocab_size, spec.num_hidden_layers
    weights = 4 * size + 16 * spec.hidden_size * max(vocabulary, spec.intermediate_size)
    kept = 24 * blocks * spec.num_key_value_heads * spec.head_dim * tokens
    scores = 12 * (spec.num_attention_heads + 1) * rows * tokens
    step = 16 * rows * (vocabulary + 4 * spec.intermediate_size)
    answer = 8 * tokens * (vocabulary + (blocks + 3) * spec.hidden_size)
    return PROCESS + weights + kept + scores + step + answer
