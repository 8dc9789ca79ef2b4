"""How far engines lie from the reference at their exact settings, and at their fast defaults.

    python -m benchmarks.engine_defaults [--model DIR]

The golden model rounded to nearest, on 256 ids in no order. Exact is what quantkit's sessions ask for. Fast is what an
engine does by itself: mlx-lm computes in the dtype of the folder's scales; ONNX Runtime at accuracy level 4, which its
own tool writes, rounds inputs of quantized matrices to int8 for every block; OpenVINO does so too, computes in bfloat16
where the processor has it, and keeps keys and values in 8 bits. The difference is the engine's own, on the same
artifact: max |Δ log-prob|, KL, top-1.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

import quantkit
from quantkit import registry
from quantkit.pipeline.options import QuantizeOptions
from quantkit.protocols import ExportOptions
from quantkit.runtimes._openvino_inputs import LOGITS, step_inputs
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

Fast = Callable[[Path, list[int]], np.ndarray]
"""Logits [T, V] of an artifact for some ids at the engine's own defaults."""


def onnxruntime_fast(artifact: Path, ids: list[int]) -> np.ndarray:
    """Accuracy level 4."""
    with OnnxruntimeSession(artifact, registry.open_checkpoint(artifact).spec, exact=False) as session:
        return session.logits(ids)


def mlx_fast(artifact: Path, ids: list[int]) -> np.ndarray:
    """As `mlx_lm.load` leaves the model."""
    import mlx.core as mx  # noqa: PLC0415 - an extra
    from mlx_lm.utils import load_model  # noqa: PLC0415 - an extra

    model, _ = load_model(artifact)
    return np.array(model(mx.array([ids]))[0].astype(mx.float32))


def openvino_fast(artifact: Path, ids: list[int]) -> np.ndarray:
    """Compiled without any hint."""
    import openvino  # noqa: PLC0415 - an extra

    request = openvino.Core().compile_model(str(artifact / "openvino_model.xml"), "CPU").create_infer_request()
    request.infer(step_inputs(ids, 0))
    return np.array(request.get_tensor(LOGITS).data[0], np.float32)


ROWS: tuple[tuple[str, str, ExportOptions, Fast], ...] = (
    ("mlx", "mlx", ExportOptions(), mlx_fast),
    ("onnxruntime", "onnx", ExportOptions(), onnxruntime_fast),
    ("onnxruntime", "onnx", ExportOptions(ops="standard"), onnxruntime_fast),
    ("openvino", "openvino", ExportOptions(), openvino_fast),
)
"""Engine, container, how it is exported, and the engine's fast defaults."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("golden/model"))
    model = parser.parse_args().model
    ids = [1, *(int(i) for i in np.arange(TOKENS - 1) * 31 % 2000 + 3)]
    print(f"{'weights':<18}{'engine':<22}{'exact':>10}{'fast':>10}{'KL, fast':>12}{'top-1, fast':>13}")
    for scheme in SCHEMES:
        with tempfile.TemporaryDirectory() as folder:
            run = quantkit.quantize(model, Path(folder) / "run", QuantizeOptions(method="rtn", scheme=scheme)).path
            for number, (engine, container, options, fast) in enumerate(ROWS):
                artifact = quantkit.export(container, run, Path(folder) / str(number), options).path
                expected, exact = (_logits(name, artifact, ids) for name in ("reference", engine))
                figures = _figures(expected, exact, fast(artifact, ids))
                shown = f"{engine} {options.ops}" if options.ops == "standard" else engine
                print(f"{scheme!s:<18}{shown:<22}{figures}", flush=True)


def _logits(runtime: str, artifact: Path, ids: list[int]) -> np.ndarray:
    with registry.runtime(runtime).open(artifact) as session:
        return session.logits(ids)


def _figures(expected: np.ndarray, exact: np.ndarray, fast: np.ndarray) -> str:
    one, other = compared(expected, exact)[0], compared(expected, fast)[0]
    return (
        f"{one.max_abs_log_prob_difference:>10.1e}{other.max_abs_log_prob_difference:>10.1e}"
        f"{other.kl:>12.1e}{other.top1:>12.1%}"
    )


if __name__ == "__main__":
    main()
