"""Quantize a folder with GPTQModel on the CPU; `benchmarks/gptqmodel_runs.py` runs it in GPTQModel's own environment.

    python gptqmodel_quantize.py FOLDER TOKENS.json OUT SETTINGS.json-text

It imports nothing of quantkit. GPTQModel needs GPTQMODEL_CPU_WORKERS=2 on two cores, and leaves a folder `logs`
where it is started: it works in a temporary one.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import torch
from gptqmodel import GPTQModel, QuantizeConfig


def main() -> None:
    """Load, quantize, save."""
    folder, tokens, out = (Path(argument).resolve() for argument in sys.argv[1:4])
    config = QuantizeConfig(**json.loads(sys.argv[4]))
    rows = json.loads(tokens.read_text())
    with tempfile.TemporaryDirectory() as work:
        os.chdir(work)
        model = GPTQModel.load(str(folder), config, device="cpu", dtype=torch.float32)
        model.quantize([{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows], batch_size=1)
        model.save(str(out))
        os.chdir(out)  # the temporary folder can go


if __name__ == "__main__":
    main()
