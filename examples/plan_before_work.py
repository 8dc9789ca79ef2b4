"""Ask what would come out, and which engines would take it, before any work is done.

python examples/plan_before_work.py MODEL
"""

from __future__ import annotations

import sys

import quantkit


def main(model: str) -> None:
    """Print sizes and engines of a few choices."""
    for bits in (3, 4, 8):
        scheme = quantkit.AffineGroups(bits=bits, group_size=128)
        options = quantkit.QuantizeOptions(method="gptq", scheme=scheme)
        plan = quantkit.plan(model, ["compressed-tensors", "gguf", "gptq", "awq"], options)
        for target in plan.targets:
            said = f"{target.size:,} bytes" if target.size is not None else f"refused: {target.refusal}"
            print(f"{scheme} as {target.format}: {said}")


if __name__ == "__main__":
    main(sys.argv[1])
