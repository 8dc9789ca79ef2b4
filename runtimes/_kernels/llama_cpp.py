"""llama.cpp's kernels, which work on blocks of 32 columns, and some on larger ones.

The exporter chooses blocks and refuses rows that are not whole ones, so what is left to ask is whether there are any.
On the CPU the other factor of a product is rounded to int8, with a scale for every 32 inputs, or for every 256 where
the kernel is one of `WIDE_INPUTS`. Sources: llama.cpp `ggml/src/ggml-common.h`; `vec_dot_type` in
`ggml/src/ggml-cpu/ggml-cpu.c`.
"""

from __future__ import annotations

from quantkit.runtimes._kernels._rules import KernelRules, Matrix

BLOCK = 32
WIDE_INPUTS = ("tq1_0", "tq2_0")
"""Types whose kernels take Q8_K inputs; all others that quantkit writes take Q8_0 or Q8_1."""


def _check(matrix: Matrix) -> str | None:
    rows, cols = matrix.shape
    return f"is {rows} x {cols}; it takes multiples of {BLOCK} columns" if cols % BLOCK else None


GGML = KernelRules(name="llama.cpp", engine="llama-cpp", containers=("gguf",), check=_check, affine=False)
KERNELS = (GGML,)
