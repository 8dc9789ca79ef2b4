"""llama.cpp's kernels, which work on blocks of 32 columns. Source: llama.cpp `ggml/src/ggml-common.h`."""

from __future__ import annotations

from quantkit.runtimes._kernels._rules import KernelRules, Matrix

BLOCK = 32


def _check(matrix: Matrix) -> str | None:
    rows, cols = matrix.shape
    return f"is {rows} x {cols}; it takes multiples of {BLOCK} columns" if cols % BLOCK else None


GGML = KernelRules(name="llama.cpp", engine="llama-cpp", containers=("gguf",), check=_check, affine=False)
KERNELS = (GGML,)
