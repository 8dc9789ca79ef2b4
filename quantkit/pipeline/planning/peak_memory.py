"""The memory that quantizing takes: estimated for plans, and held against this machine's before a run begins."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from quantkit.calibration.folds import FOLDS
from quantkit.calibration.own_text.generation_work import generation_memory
from quantkit.calibration.samples import WAVE_TOKENS, CalibrationOptions, weighed_tokens
from quantkit.errors import BadOption
from quantkit.memory import machine_memory
from quantkit.models.spec import ModelSpec
from quantkit.pipeline.options import QuantizeOptions
from quantkit.protocols import Method

STREAM_BYTES = 90 << 20
"""The interpreter with numpy, and what passes through."""
CODE_BYTES = 3
"""Of every weight of a tensor whose codes are in memory: as codes, packed, and as they are read back."""
TORCH_BYTES = 350 << 20
ALLOCATED = 1.2
"""Resident bytes of calibrated runs over those in use: measured 1.0 to 1.25 on models of 1 to 24 blocks."""


def run_memory(spec: ModelSpec, methods: Iterable[Method], options: QuantizeOptions, *, threads: int) -> int:
    """Estimated peak resident bytes of quantizing by these methods, with the text that the model writes before."""
    used, calibration = list(methods), options.calibration
    if not any(method.needs_calibration for method in used):
        return peak_memory(spec, 0)
    tokens = calibration.sequences * calibration.length
    weighed = weighed_tokens(tokens) if any(method.weighs_outputs for method in used) else 0
    own = calibration.own_text
    writing = generation_peak(spec, calibration, threads=threads, bfloat16=False) if own else 0
    return max(peak_memory(spec, tokens, weighed), writing)


def peak_memory(spec: ModelSpec, calibration_tokens: int, weighed: int = 0) -> int:
    """Estimated peak resident bytes of the quantization step.

    Without calibration tensors pass through, see `streaming_memory`. With it: one block in float32 (original and
    quantized); its Hessians on every fold, of the largest the sum, what is left without a fold, and the factorisation's
    copies; the hidden states of all calibration tokens in both streams, with the widest layer's inputs in either, and
    what its outputs lack; what the Fisher pass keeps of every block: hidden states of one wave of tokens, one matrix of
    the outputs' size for its layers, and two numbers per token; and what the allocator does not reuse.
    """
    sizes = [rows * cols for rows, cols in matrices(spec)]
    if not calibration_tokens:
        return streaming_memory(max(sizes))
    inputs = input_widths(spec)
    hessians = 4 * (FOLDS * sum(width**2 for width in inputs) + 6 * max(inputs) ** 2)
    states = 4 * calibration_tokens * (3 * spec.hidden_size + 2 * max(inputs))
    outputs = [spec.layer_shape(role)[0] for role in spec.weighed_roles]
    wave = min(weighed, WAVE_TOKENS)
    fisher = 4 * (wave * spec.hidden_size + sum(rows**2 for rows in outputs) + 2 * weighed) if weighed else 0
    used = 8 * sum(sizes) + hessians + states + spec.num_hidden_layers * fisher
    return TORCH_BYTES + round(ALLOCATED * used)


def streaming_memory(codes: int, beside: int = 0) -> int:
    """Estimated peak resident bytes of writing tensors one after the other.

    codes: of the largest tensor that becomes codes. beside: bytes of something else that lies in memory meanwhile.
    """
    return STREAM_BYTES + CODE_BYTES * codes + beside


def generation_peak(spec: ModelSpec, options: CalibrationOptions, *, threads: int, bfloat16: bool) -> int:
    """Estimated peak resident bytes while the model writes its share of the calibration text."""
    own = replace(options, files=(), sequences=options.shares()[-1])
    return TORCH_BYTES + round(ALLOCATED * generation_memory(spec, own, threads=threads, bfloat16=bfloat16))


def check_memory(spec: ModelSpec, sequences: int, tokens: int, *, weighs: bool, at_least: int = 0) -> None:
    """Raise `BadOption` when calibrating on `sequences` of together `tokens` tokens takes more than this machine has.

    weighs: whether outputs are weighed by a Fisher pass. at_least: what something else takes before.
    """
    available = machine_memory()
    needed = max(at_least, peak_memory(spec, tokens, weighed_tokens(tokens) if weighs else 0))
    if available is not None and needed > available:
        raise BadOption(
            f"calibrating on {sequences:,} sequences, {tokens:,} tokens, needs about {needed / 1e9:,.1f} GB of "
            f"memory; this machine has {available / 1e9:,.1f} GB",
            hint="fewer or shorter sequences: --samples, --length",
        )


def matrices(spec: ModelSpec) -> list[tuple[int, ...]]:
    """Shapes of a block's linear layers."""
    return [spec.layer_shape(role) for group in spec.groups for role in group.roles]


def input_widths(spec: ModelSpec) -> list[int]:
    """Columns of each input that a block's linear layers read, counted once where several share it."""
    return [spec.layer_shape(group.roles[0])[1] for group in spec.groups]
