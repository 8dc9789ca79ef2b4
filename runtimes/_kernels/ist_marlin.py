"""IST-DASLab's own Marlin kernel. Source: IST-DASLab marlin `marlin/__init__.py`."""

from __future__ import annotations

from quantkit.runtimes._kernels._rules import KernelRules, Matrix, marlin_grid

ROWS, COLS = 256, 128


def _check(matrix: Matrix) -> str | None:
    rows, cols = matrix.shape
    if rows % ROWS or cols % COLS:
        return f"is {rows} x {cols}; it takes multiples of {ROWS} x {COLS}"
    return marlin_grid(matrix)


KERNELS = (KernelRules(name="ist-marlin", engine="ist-marlin", containers=("marlin",), targets=("ist",), check=_check),)
