"""How far ONNX Runtime lies from the reference at its exact settings, and at its fast ones.

    python -m benchmarks.onnx_defaults [--model DIR]

The golden model rounded to nearest, in both sets of operators, on 256 ids in no order. Exact is what quantkit's graphs,
sessions and genai_config.json ask for: inputs of quantized matrices stay what they are. Fast is accuracy level 4, which
rounds them to int8 for every block: what the engine's own tool writes, and what it makes of DequantizeLinear unless it
is told otherwise. The difference is the engine's own, on the same artifact: max |Δ log-prob|, KL, top-1.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

import quantkit
from quantkit import registry
from quantkit.pipeline.options import QuantizeOptions
from quantkit.protocols import ExportOptions
from quantkit.runtimes.onnxruntime.session import OnnxruntimeSession
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.verification.metrics import compared

SCHEMES = (
    AffineGroups(bits=4, group_size=128),
    AffineGroups(bits=4, group_size=128, symmetric=False),
    AffineGroups(bits=4, group_size=32),
    AffineGroups(bits=8, group_size=128),
    AffineGroups(bits=2, group_size=32, symmetric=False),
)
TOKENS = 256


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("golden/model"))
    model = parser.parse_args().model
    ids = [1, *(int(i) for i in np.arange(TOKENS - 1) * 31 % 2000 + 3)]
    print(f"{'weights':<22}{'operators':<12}{'exact':>10}{'fast':>10}{'KL, fast':>12}{'top-1, fast':>13}")
    for scheme in SCHEMES:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            run = quantkit.quantize(model, folder / "run", QuantizeOptions(method="rtn", scheme=scheme)).path
            with registry.runtime("reference").open(run) as reference:
                expected = reference.logits(ids)
            for ops in ("contrib", "standard"):
                artifact = quantkit.export("onnx", run, folder / ops, ExportOptions(ops=ops)).path
                print(f"{scheme!s:<22}{ops:<12}{_figures(artifact, ids, expected)}", flush=True)


def _figures(artifact: Path, ids: list[int], expected: np.ndarray) -> str:
    spec = registry.open_checkpoint(artifact).spec
    found = []
    for exact in (True, False):
        with OnnxruntimeSession(artifact, spec, exact=exact) as session:
            found.append(compared(expected, session.logits(ids))[0])
    one, other = found
    return (
        f"{one.max_abs_log_prob_difference:>10.1e}{other.max_abs_log_prob_difference:>10.1e}"
        f"{other.kl:>12.1e}{other.top1:>12.1%}"
    )


if __name__ == "__main__":
    main()
