"""Does an ONNX graph of more than 2 GiB, which is more than one protobuf holds, save, load and run?

    python -m benchmarks.large_graph [--ops contrib|standard] [--scratch DIR]

A random dense model of 630 million weights is exported in float32, before anything else takes memory;
onnx's checker reads the graph, onnxruntime computes eight tokens, and the reference runtime the same.

Exits with 1 when the data is smaller, the memory of the export larger than 600 MiB, or a log-probability off by 1e-3.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from quantkit.models.checkpoint import Checkpoint
from quantkit.models.recognition import parse_config
from quantkit.tensors.views import TensorView

CONFIG = {
    "architectures": ["MiniCPMForCausalLM"], "model_type": "minicpm", "vocab_size": 73448, "hidden_size": 2048,
    "intermediate_size": 8192, "num_hidden_layers": 8, "num_attention_heads": 16, "num_key_value_heads": 2,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256,
}  # fmt: skip
IDS = [1, 5, 73000, 42, 9, 100, 20000, 3]
LEAST, MEMORY, OFF = 1 << 31, 600, 1e-3
DRAWN = 64
"""Rows of a matrix that are drawn; the others are these, each times a factor of its own."""


def model() -> Checkpoint:
    """The same weights every time; a view computes the rows that it is asked for."""
    spec = parse_config(CONFIG)
    weights = {}
    for seed, slot in enumerate(spec.slots()):
        width = slot.shape[-1]
        drawn = np.random.default_rng(seed).standard_normal((DRAWN, width)).astype(np.float32) / np.float32(width**0.5)
        fetch: Callable[[int, int], np.ndarray] = partial(_rows, drawn, slot.shape[0]) if len(slot.shape) > 1 else _ones
        weights[slot.name] = TensorView(slot.name, np.dtype(np.float32), slot.shape, fetch)
    return Checkpoint(path=Path("random"), format="hf", config=CONFIG, spec=spec, weights=weights, files={}, inputs=())


def _rows(drawn: np.ndarray, rows: int, start: int, stop: int) -> np.ndarray:
    places = np.arange(start, stop)
    found: np.ndarray = drawn[places % DRAWN] * (1 + places / rows).astype(np.float32)[:, None]
    return found


def _ones(start: int, stop: int) -> np.ndarray:
    return np.ones(stop - start, np.float32)


def export(out: Path, ops: str) -> float:
    """Write the folder; returns the peak memory of this process in MiB."""
    from quantkit.artifacts.publishing import publish  # noqa: PLC0415 - as below: memory counts
    from quantkit.protocols import ExportOptions  # noqa: PLC0415
    from quantkit.registry import exporter  # noqa: PLC0415

    publish(exporter("onnx").prepare(model(), ExportOptions(ops=ops)), out)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def difference(out: Path) -> float:
    """The largest of a log-probability between onnxruntime and the reference."""
    import onnxruntime  # noqa: PLC0415 - an extra, and memory of this process

    from quantkit.runtimes.reference.runtime import ReferenceSession  # noqa: PLC0415

    checkpoint = model()
    spec = checkpoint.spec
    engine = onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
    empty = np.zeros((1, spec.num_key_value_heads, 0, spec.head_dim), np.float32)
    past = {entry.name: empty for entry in engine.get_inputs()[2:]}
    given = {"input_ids": np.array([IDS], np.int64), "attention_mask": np.ones((1, len(IDS)), np.int64), **past}
    found = engine.run(["logits"], given)[0][0]
    del engine
    with ReferenceSession(checkpoint) as oracle:
        expected = oracle.logits(IDS)
    return float(np.abs(_log_probabilities(found) - _log_probabilities(expected)).max())


def _log_probabilities(logits: np.ndarray) -> np.ndarray:
    wide = logits - logits.max(-1, keepdims=True).astype(np.float64)
    found: np.ndarray = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large_graph", description="A graph over 2 GiB.")
    parser.add_argument("--ops", choices=("contrib", "standard"), default="contrib")
    parser.add_argument("--scratch", type=Path, help="a folder with 3 GB to spare (default: that of temporary files)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="large-graph-", dir=options.scratch) as scratch:
        out, start = Path(scratch) / "model", time.monotonic()
        memory = export(out, options.ops)
        data, graph = ((out / name).stat().st_size for name in ("model.onnx.data", "model.onnx"))
        print(
            f"graph {graph:,} bytes, data {data:,} bytes, exported in {time.monotonic() - start:.0f} s with "
            f"{memory:.0f} MiB at most"
        )
        import onnx  # noqa: PLC0415 - an extra

        onnx.checker.check_model(str(out / "model.onnx"), full_check=True)
        print("onnx.checker, full: takes it")
        off = difference(out)
        print(f"onnxruntime against the reference: max |Δ log-prob| {off:.1e}")
    return 1 if data < LEAST or memory > MEMORY or off > OFF else 0


if __name__ == "__main__":
    sys.exit(main())
