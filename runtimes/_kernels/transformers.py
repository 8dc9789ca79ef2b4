"""transformers: its own classes, and the package compressed-tensors, which gives it dense weights to compute with.

transformers 5 has a class for MiniCPM3, and none for a MiniCPM: the config class that travels with a native folder lets
other engines parse config.json, and no more (`trust_remote_code=True` changes nothing: it holds no model code).

Of compressed-tensors its usual path wants zero points in another shape than they are stored in, and leaves a quantized
embedding alone; dequantizing while loading takes both, but knows a single grid only. Layers of BitNet are compiled by
torch, and round their inputs to int8. Source: transformers 5.24 `quantizers/quantizer_compressed_tensors.py`,
`integrations/bitnet.py`, compressed-tensors 0.20. All are loaded in tests/pipeline/planning/test_verdicts.py and
tests/exporters/test_bitnet.py.
"""

from __future__ import annotations

from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import Role
from quantkit.runtimes._kernels._rules import KernelRules
from quantkit.tensors.scheme import Scheme
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView, grid_of


def must_dequantize(model: Checkpoint) -> bool:
    """Whether `model` loads with `CompressedTensorsConfig(dequantize=True)` alone: zero points, quantized embedding."""
    embeddings = [slot.name for slot in model.spec.slots() if slot.role is Role.EMBED]
    zero_points = any(isinstance(grid, AffineGroups) and not grid.symmetric for grid in _grids(model))
    return zero_points or any(isinstance(model.weights[name], QuantizedView) for name in embeddings)


def _grids(model: Checkpoint) -> set[Scheme]:
    """The different grids; a scale's dtype is no part of what the loader asks."""
    return {grid for weight in model.weights.values() if (grid := grid_of(weight)) is not None}


def _single_grid(model: Checkpoint) -> str | None:
    if must_dequantize(model) and len(_grids(model)) > 1:
        return "it takes zero points and quantized embeddings of a single grid only, and this folder has several"
    return None


def _dequantizing(model: Checkpoint) -> str | None:
    return "CompressedTensorsConfig(dequantize=True)" if must_dequantize(model) else None


def _rounding(model: Checkpoint) -> str | None:
    return "rounds the inputs of its layers to int8" if model.format == "bitnet" else None


def _usage(model: Checkpoint) -> str:
    setting = _dequantizing(model)
    names = ", ".join(filter(None, ("AutoModelForCausalLM", "AutoTokenizer", setting and setting.partition("(")[0])))
    how = f", quantization_config={setting}" if setting else ""
    return f"""\
from transformers import {names}

model = AutoModelForCausalLM.from_pretrained("FOLDER"{how})
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
ids = tokenizer("The sky is", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=64)[0]))"""


DENSE = KernelRules(
    usage=_usage,
    name="transformers",
    engine="transformers",
    containers=("hf", "compressed-tensors", "bitnet"),
    architectures=("llama", "minicpm3"),
    check_model=_single_grid,
    setting=_dequantizing,
    remark=_rounding,
)
KERNELS = (DENSE,)
