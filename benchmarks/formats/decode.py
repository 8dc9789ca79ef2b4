"""Processor time of a decoded token in an engine, at the engine's own defaults; `benchmarks/format_speed.py` starts it.

    python -m benchmarks.formats.decode onnxruntime|openvino FILE [--tokens 32]

Prints seconds of processor per token: the median of several runs of tokens behind a prompt of 16, on one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

PROMPT, ROUNDS = 16, 5
Step = Callable[[np.ndarray, int], None]
"""Takes ids [1, T] and how many came before them."""


def onnxruntime_step(file: Path) -> Step:
    """Caches are fed back as they come out."""
    import onnxruntime  # noqa: PLC0415 - an extra

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    caches: dict[str, object] = {}
    empty = {one.name: one for one in session.get_inputs() if one.name.startswith("past")}

    def step(ids: np.ndarray, past: int) -> None:
        if past == 0:
            for name, one in empty.items():
                kind = np.float16 if "float16" in one.type else np.float32
                value = np.zeros((1, one.shape[1], 0, one.shape[3]), kind)
                caches[name] = onnxruntime.OrtValue.ortvalue_from_numpy(value)
        given = {"input_ids": ids, "attention_mask": np.ones((1, past + ids.shape[1]), np.int64)}
        values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in given.items()}
        found = session.run_with_ort_values(names, {**values, **caches})
        for name, value in zip(names, found, strict=True):
            if name.startswith("present"):
                caches[name.replace("present", "past_key_values", 1)] = value

    return step


def openvino_step(file: Path) -> Step:
    """The state is the engine's own."""
    import openvino  # noqa: PLC0415 - an extra

    request = openvino.Core().compile_model(str(file), "CPU", {"INFERENCE_NUM_THREADS": 1}).create_infer_request()
    beam = np.zeros(1, np.int32)

    def step(ids: np.ndarray, past: int) -> None:
        if past == 0:
            request.reset_state()
        mask = np.ones((1, past + ids.shape[1]), np.int64)
        places = np.arange(past, past + ids.shape[1])[None]
        request.infer({"input_ids": ids, "attention_mask": mask, "position_ids": places, "beam_idx": beam})

    return step


def main() -> None:
    """Load, warm up, time."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("engine", choices=("onnxruntime", "openvino"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--tokens", type=int, default=32)
    options = parser.parse_args()
    step = {"onnxruntime": onnxruntime_step, "openvino": openvino_step}[options.engine](options.file)
    ids, found = np.random.default_rng(0).integers(3, 1000, (1, PROMPT + options.tokens)), []
    for _ in range(ROUNDS + 1):
        step(ids[:, :PROMPT], 0)
        start = time.process_time()
        for place in range(PROMPT, PROMPT + options.tokens):
            step(ids[:, place : place + 1], place)
        found.append((time.process_time() - start) / options.tokens)
    print(median(found[1:]))


if __name__ == "__main__":
    main()
