"""How much time and memory an engine may take with an ONNX graph: far more than a correct one needs, and not endless.

    a process with numpy and the library, small buffers              1 GiB
    weights as the engine keeps them, packed anew or dequantized     20 times the files
    keys and values, float32, old and new ones                       16 bytes x tokens x blocks x key-value channels
    attention scores, in three copies                                12 bytes x tokens x heads x step
    what one step computes                                           16 bytes x step x (vocabulary + 4 MLP widths)
    logits and stages of all tokens, twice                           8 bytes x tokens x (vocabulary + blocks x width)

Time is that of a machine that reads 20 MB of the files a second while it loads, and 100 MB of weights a second while it
evaluates, which are read once for each token: some kernels of 2 and 8 bits dequantize them every time.
"""

from __future__ import annotations

from pathlib import Path

from quantkit.models.spec import ModelSpec
from quantkit.runtimes._engine_process import Allowance

SECONDS = 120.0
"""Of every request, whatever it reads."""
LOADED_PER_SECOND = 20e6
READ_PER_SECOND = 100e6
PROCESS = 1 << 30
COPIES = 20


def size_of(folder: Path) -> int:
    """Bytes of the graph and of what lies beside it."""
    return sum(file.stat().st_size for file in folder.glob("model.onnx*"))


def loading(folder: Path, spec: ModelSpec) -> Allowance:
    """For making a session."""
    return Allowance("loading the model", SECONDS + size_of(folder) / LOADED_PER_SECOND, _memory(folder, spec, 0, 0))


def evaluating(folder: Path, spec: ModelSpec, tokens: int, step: int) -> Allowance:
    """For what `tokens` tokens predict, `step` at a time."""
    seconds = SECONDS + tokens * size_of(folder) / READ_PER_SECOND
    return Allowance(f"evaluating {tokens} tokens", seconds, _memory(folder, spec, tokens, min(step, tokens)))


def _memory(folder: Path, spec: ModelSpec, tokens: int, step: int) -> int:
    blocks, vocabulary = spec.num_hidden_layers, spec.vocab_size
    kept = 16 * blocks * spec.num_key_value_heads * spec.head_dim * tokens
    scores = 12 * spec.num_attention_heads * step * tokens
    part = 16 * step * (vocabulary + 4 * spec.intermediate_size)
    answer = 8 * tokens * (vocabulary + (blocks + 3) * spec.hidden_size)
    return PROCESS + COPIES * size_of(folder) + kept + scores + part + answer
