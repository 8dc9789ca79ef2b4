"""GPTQModel's kernel of plain torch operations, which runs everywhere.

GPTQModel builds models of transformers' classes, and transformers 5 has none for a MiniCPM (see `transformers.py`).
Source: GPTQModel 7.7.0 `nn_modules/qlinear/torch.py`, `models/auto.py`; benchmarks/gptqmodel_reader.py loads folders.
"""

from __future__ import annotations

from quantkit.models.checkpoint import Checkpoint
from quantkit.runtimes._kernels._rules import KernelRules, Matrix
from quantkit.tensors.scheme import PER_ROW

GROUPS = (16, 32, 64, 128, 256, 512, 1024, PER_ROW)


def _torch(matrix: Matrix) -> str | None:
    if matrix.spec.group_size not in GROUPS:
        return f"is {matrix.spec}; it takes groups of 16, 32, 64, 128, 256, 512, 1024 or a row"
    return None


def _usage(model: Checkpoint) -> str:
    return """\
from gptqmodel import GPTQModel

model = GPTQModel.load("FOLDER")
print(model.tokenizer.decode(model.generate("The sky is")[0]))"""


KERNELS = (
    KernelRules(
        name="gptqmodel-torch",
        engine="gptqmodel",
        containers=("gptq",),
        architectures=("llama",),
        title="GPTQModel",
        usage=_usage,
        check=_torch,
    ),
)
