"""How coarse the weights of a checkpoint are."""

from __future__ import annotations

from quantkit.files.source_file import SourceFile
from quantkit.models.checkpoint import Checkpoint
from quantkit.tensors.views import TensorView

QUANTIZED = "quantized"
DENSE = ("float32", "float16", "bfloat16")
"""From fine to coarse."""


def precision_of(checkpoint: Checkpoint) -> str:
    """`QUANTIZED`, or the coarsest dtype of a dense artifact's matrices: "float32", "float16" or "bfloat16".

    A container may hold fewer bits than the dtype its weights are read in (GGUF blocks with a minimum read as
    floats), so the size of the files counts, too.
    """
    if checkpoint.holds_codes:
        return QUANTIZED
    dense = [view for view in checkpoint.weights.values() if isinstance(view, TensorView)]
    stored = sum(SourceFile.open(path).size for path in checkpoint.inputs)
    if checkpoint.inputs and stored < sum(view.nbytes for view in dense):
        return QUANTIZED
    dtypes = {str(view.dtype) for view in dense if len(view.shape) == 2}
    return next(name for name in reversed(DENSE) if name in dtypes)
