"""Compress an OpenVINO model by nncf; `benchmarks/format_quality.py` runs it in an environment that has nncf.

    python nncf_compress.py MODEL.xml TOKENS.json OUT.xml SETTINGS.json-text

It imports nothing of quantkit. SETTINGS are arguments of `nncf.compress_weights`; "mode" by name.
"""

import json
import sys
from pathlib import Path

import nncf
import numpy as np
import openvino


def items(rows: list[list[int]]) -> list[dict[str, np.ndarray]]:
    """What the model is fed with, a sequence at a time."""
    return [
        {
            "input_ids": np.array([row]),
            "attention_mask": np.ones((1, len(row)), np.int64),
            "position_ids": np.arange(len(row))[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        for row in rows
    ]


def main() -> None:
    """Read, compress, save."""
    source, tokens, out, text = sys.argv[1:]
    settings = json.loads(text)
    settings["mode"] = nncf.CompressWeightsMode[settings["mode"]]
    if settings.pop("calibrated", False):
        rows = json.loads(Path(tokens).read_text(encoding="utf-8"))
        settings |= {"dataset": nncf.Dataset(items(rows)), "subset_size": len(rows)}
    model = nncf.compress_weights(openvino.Core().read_model(source), **settings)
    openvino.save_model(model, out, compress_to_fp16=False)


if __name__ == "__main__":
    main()
