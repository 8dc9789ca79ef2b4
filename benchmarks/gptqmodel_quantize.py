"""Quantize a folder with GPTQModel on the CPU; `int4_quality.py` runs it in GPTQModel's own environment.

    python gptqmodel_quantize.py FOLDER TOKENS.json OUT SETTINGS.json-text

It imports nothing of quantkit. GPTQModel needs GPTQMODEL_CPU_WORKERS=2 on two cores.
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import gptqmodel
import torch


def main() -> None:
    """Load, quantize, save."""
    folder, tokens, out, settings = sys.argv[1:5]
    options = json.loads(settings)
    if options.pop("gptaq", False):
        options["gptaq"] = gptqmodel.quantization.config.GPTAQConfig()
    config = gptqmodel.QuantizeConfig(**options)
    model = gptqmodel.GPTQModel.load(folder, config, device="cpu", dtype=torch.float32)
    rows = json.loads(Path(tokens).read_text())
    model.quantize([{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows], batch_size=1)
    model.save(out)


if __name__ == "__main__":
    main()
