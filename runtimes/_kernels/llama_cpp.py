"""llama.cpp's kernels, which work on blocks of 32 columns, and some on larger ones.

The exporter chooses blocks and refuses rows that are not whole ones, so what is left to ask is whether there are any.
On the CPU the other factor of a product is rounded to int8, with a scale for every 32 inputs, or for every 256 where
the kernel is one of `WIDE_INPUTS`. Sources: llama.cpp `ggml/src/ggml-common.h`; `vec_dot_type` in
`ggml/src/ggml-cpu/ggml-cpu.c`.
"""

from __future__ import annotations

from quantkit.models.checkpoint import Checkpoint
from quantkit.runtimes._kernels._rules import KernelRules, Matrix
from quantkit.tensors.views import QuantizedView

BLOCK = 32
WIDE_INPUTS = ("tq1_0", "tq2_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs")
"""Types whose kernels take Q8_K inputs; all others that quantkit writes take Q8_0 or Q8_1."""
SLOWER = {
    "tq1_0": "getting tq1_0's codes out of their bytes takes longer than reading more bytes of tq2_0",
    "q2_0": "on x86 it has no vector instructions for q2_0, as of 2026",
}
"""Types that are not as fast as they are small."""


def _check(matrix: Matrix) -> str | None:
    rows, cols = matrix.shape
    return f"is {rows} x {cols}; it takes multiples of {BLOCK} columns" if cols % BLOCK else None


def stored_types(model: Checkpoint) -> set[str | None]:
    """The types of blocks that its weights lie in, as far as that is known."""
    return {view.stored_as for view in model.weights.values() if isinstance(view, QuantizedView)}


def _slower(model: Checkpoint) -> str | None:
    types = stored_types(model)
    return next((remark for kind, remark in SLOWER.items() if kind in types), None)


def _usage(model: Checkpoint) -> str:
    return "llama-cli -m FILE.gguf"


GGML = KernelRules(
    title="llama.cpp",
    usage=_usage,
    name="llama.cpp",
    engine="llama-cpp",
    containers=("gguf",),
    architectures=("minicpm", "llama", "minicpm3"),
    check=_check,
    remark=_slower,
    affine=False,
)
KERNELS = (GGML,)
