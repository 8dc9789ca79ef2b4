"""Options of containers that hold a graph, or quantize dense weights by themselves, which all others refuse."""

from __future__ import annotations

from quantkit.errors import BadOption
from quantkit.models.checkpoint import ATTENTIONS
from quantkit.protocols import ExportOptions

DENSE, _ = ATTENTIONS


def refuse_graph_options(options: ExportOptions, *, container: str) -> None:
    """Raise `BadOption` where `options` choose operators, a context or attention: not for `container` to choose."""
    if options.ops is not None:
        raise BadOption(f"{container} holds weights, not operators", hint="leave --ops out; it is for onnx")
    if options.context is not None:
        raise BadOption(f"{container} is not made for a context of its own", hint="leave --context out; it is for onnx")
    if options.attention != DENSE:
        raise BadOption(
            f"{container} holds weights; how they attend is its engine's to say",
            hint="leave --attention out; it is for onnx",
        )


def refuse_block_options(options: ExportOptions, *, container: str) -> None:
    """Raise `BadOption` where `options` say how dense weights are quantized on the way, or how large files may be."""
    if options.blocks is not None and options.blocks.to_json():
        raise BadOption(
            f"{container} does not quantize on the way",
            hint="leave --algorithm, --imatrix and types of tensors out; they are for gguf",
        )
    if options.split_bytes is not None:
        raise BadOption(
            f"{container} chooses the size of its files itself", hint="leave --split-max-size out; it is for gguf"
        )
