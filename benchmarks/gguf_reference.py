"""Are GGUF's reference quantizers ggml's own, byte for byte, and how long do they take beside its C code?

    python -m benchmarks.gguf_reference [--blocks 10000] [--only Q4_K,Q6_K]

For every type, rows of 15 kinds (normal, heavy-tailed, constant, zero, denormal and others, see
`tests/support/gguf_rows.py`) are quantized by ours and by `ggml_quantize_chunk` of the xllamacpp package, without
importance weights and with three kinds of them; at least `--blocks` blocks of every kind. Printed are the blocks that
were compared, how many of them differ, and the processor time of both per million normal weights.

Exits with 1 when a block differs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import numpy as np

from quantkit.exporters.gguf import blocks
from quantkit.exporters.gguf.blocks import BlockType
from quantkit.exporters.gguf.reference.quantizer import reference_blocks
from quantkit.exporters.gguf.types.values import LAYOUTS
from tests.support import ggml
from tests.support.gguf_rows import importances, rows_of_every_kind

COLS = 2048
TYPES = {block.name: block for block in (*blocks.QUANTIZED.values(), *LAYOUTS)}


def compared(block: BlockType, least: int) -> tuple[int, int]:
    """How many blocks were compared, and how many of them differ."""
    rows = -(-least * block.elements // COLS)
    total = differing = 0
    for seed, weights in enumerate(importances(COLS).values()):
        for values in rows_of_every_kind(rows, COLS, seed).values():
            ours = reference_blocks("w", block, values, weights).reshape(-1, block.nbytes)
            theirs = ggml.quantized(block, values, weights).reshape(-1, block.nbytes)
            total += len(ours)
            differing += int((ours != theirs).any(axis=1).sum())
    return total, differing


def milliseconds(work: Callable[[], object], weights: int) -> float:
    """Processor time per million weights, the smaller of two."""
    times = []
    for _ in range(2):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times) * 1e9 / weights


def main() -> int:
    """Print the table; 1 where a block differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--blocks", type=int, default=10_000, help="of every kind of rows, at least")
    parser.add_argument("--only", default=",".join(TYPES), help="types, with commas")
    arguments = parser.parse_args()
    values = (np.random.default_rng(0).standard_normal((512, COLS)) * 0.02).astype(np.float32)
    skewed = importances(COLS)["skewed"]
    print(f"{'type':8}{'blocks':>12}{'differ':>8}   ms per million weights, ours and C: plain, with importance")
    wrong = 0
    for name in arguments.only.split(","):
        block = TYPES[name]
        total, differing = compared(block, arguments.blocks)
        wrong += differing
        times = [
            f"{milliseconds(lambda: reference_blocks('w', block, values, by), values.size):5.0f}"  # noqa: B023 - now
            f"{milliseconds(lambda: ggml.quantized(block, values, by), values.size):5.0f}"  # noqa: B023 - now
            for by in (None, skewed)
        ]
        print(f"{name:8}{total:12,}{differing:8}   {'   '.join(times)}", flush=True)
    print("0 blocks differ" if not wrong else f"{wrong:,} BLOCKS DIFFER")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
