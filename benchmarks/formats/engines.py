"""A model in an engine, at its exact settings: token ids [1, T] to logits [T, vocab]."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

Logits = Callable[[np.ndarray], np.ndarray]


def in_mlx(folder: Path) -> Logits:
    """mlx-lm, in float32."""
    import mlx.core as mx  # noqa: PLC0415 - an extra
    from mlx_lm.utils import load_model  # noqa: PLC0415 - an extra

    model, _ = load_model(folder)
    model.set_dtype(mx.float32)

    def logits(ids: np.ndarray) -> np.ndarray:
        return np.array(model(mx.array(ids))[0].astype(mx.float32))

    return logits


def in_onnxruntime(file: Path) -> Logits:
    """ONNX Runtime, at accuracy level 0; key-value caches begin empty."""
    import onnxruntime  # noqa: PLC0415 - an extra

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16}

    def logits(ids: np.ndarray) -> np.ndarray:
        given: dict[str, np.ndarray] = {}
        for one in session.get_inputs():
            if one.name.startswith("past_key_values"):
                shape = [1, one.shape[1], 0, one.shape[3]]
                given[one.name] = np.zeros(shape, kinds[one.type])
            elif one.name == "attention_mask":
                given[one.name] = np.ones_like(ids)
            else:
                given[one.name] = ids
        return session.run(["logits"], given)[0][0]

    return logits


def in_openvino(file: Path) -> Logits:
    """OpenVINO, in its accurate mode; the state is forgotten before every sequence."""
    import openvino  # noqa: PLC0415 - an extra

    settings = {"EXECUTION_MODE_HINT": "ACCURACY", "INFERENCE_NUM_THREADS": 1}
    request = openvino.Core().compile_model(str(file), "CPU", settings).create_infer_request()

    def logits(ids: np.ndarray) -> np.ndarray:
        request.reset_state()
        request.infer(
            {
                "input_ids": ids,
                "attention_mask": np.ones_like(ids),
                "position_ids": np.arange(ids.shape[1])[None],
                "beam_idx": np.zeros(1, np.int32),
            }
        )
        return request.get_tensor("logits").data[0].copy()

    return logits
