"""CPM.cu's Marlin kernel, and its sparse attention. Source: CPM.cu `src/qgemm/gptq_marlin/`, `src/model/minicpm4/`."""

from __future__ import annotations

from quantkit.models.checkpoint import Checkpoint
from quantkit.runtimes._kernels._rules import TILE, KernelRules, Matrix, marlin_grid

HEADS, SIZES = 16, (32, 16, 64)


def _check(matrix: Matrix) -> str | None:
    rows, cols = matrix.shape
    if not matrix.whole_tiles:
        return f"is {rows} x {cols}; it takes multiples of {TILE}, one of the two of {2 * TILE}"
    return marlin_grid(matrix)


def _sparsely(model: Checkpoint) -> str | None:
    """Its kernels have sizes of means and blocks compiled in, and take 16 query heads for each key-value head."""
    spec, sparse = model.spec, model.spec.sparse
    if sparse is None or spec.num_attention_heads != HEADS * spec.num_key_value_heads:
        return None
    if (sparse.kernel_size, sparse.kernel_stride, sparse.block_size) != SIZES:
        return None
    return "as variant cpm.cu, its own options for window, top-k and switch"


KERNELS = (
    KernelRules(
        name="cpm.cu",
        engine="cpm.cu",
        containers=("marlin",),
        targets=("cpm.cu",),
        check=_check,
        sparsely=_sparsely,
        fuses=True,
    ),
)
