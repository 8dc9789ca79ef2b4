"""CPM.cu's Marlin kernel. Source: CPM.cu `src/qgemm/gptq_marlin/`."""

from __future__ import annotations

from quantkit.runtimes._kernels._rules import TILE, KernelRules, Matrix, marlin_grid


def _check(matrix: Matrix) -> str | None:
    rows, cols = matrix.shape
    if not matrix.whole_tiles:
        return f"is {rows} x {cols}; it takes multiples of {TILE}, one of the two of {2 * TILE}"
    return marlin_grid(matrix)


KERNELS = (
    KernelRules(name="cpm.cu", engine="cpm.cu", containers=("marlin",), targets=("cpm.cu",), check=_check, fuses=True),
)
