"""Ask what would come out, what it would cost, and which engines would take it, before any work is done.

python examples/plan_before_work.py MODEL
"""

from __future__ import annotations

import sys

import quantkit


def main(model: str) -> None:
    """Print sizes, engines and the estimated time of a few choices."""
    for bits in (3, 4, 8):
        scheme = quantkit.AffineGroups(bits=bits, group_size=128)
        options = quantkit.QuantizeOptions(method="gptq", scheme=scheme)
        plan = quantkit.plan(model, ["compressed-tensors", "gguf", "gptq", "awq", "mlx"], options)
        print(f"{scheme}: about {plan.seconds:.0f} s and {plan.peak_memory_bytes / 1e6:.0f} MB of memory")
        for target in plan.targets:
            said = f"{target.size:,} bytes, {target.loads_in}" if target.size is not None else f"no: {target.refusal}"
            print(f"  {target.format}: {said}")


if __name__ == "__main__":
    main(sys.argv[1])
