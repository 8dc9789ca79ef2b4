"""vLLM's kernels: for the CPU, and Marlin on CUDA.

Source: vLLM 0.32.0 `model_executor/kernels/linear/mixed_precision/cpu.py` and `marlin.py`,
`layers/quantization/utils/marlin_utils.py`, `models/minicpm.py`.
"""

from __future__ import annotations

from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import Role
from quantkit.runtimes._kernels._rules import TILE, KernelRules, Matrix
from quantkit.tensors.scheme import PER_ROW

CONTAINERS = ("awq", "compressed-tensors", "gptq", "hf")
ARCHITECTURES = ("minicpm", "llama", "minicpm3")
GROUPS = (32, 64, 128, PER_ROW)
STEP = 32
"""Rows and columns of the kernel for the CPU are multiples of it."""


def _model(model: Checkpoint) -> str | None:
    """Its LongRoPE reads `short_mscale` and `long_mscale`, else derives the attention factor from the two contexts."""
    spec = model.spec
    factor = spec.explicit_attention_factor
    if factor is not None:
        return f"its LongRoPE takes no attention factor, and the config says {factor:g}"
    if spec.architecture == "minicpm" and spec.head_dim * spec.num_attention_heads != spec.hidden_size:
        return (
            f"its MiniCPM takes {spec.hidden_size} / {spec.num_attention_heads} channels per head, not {spec.head_dim}"
        )
    return None


def _config_class(model: Checkpoint) -> str | None:
    """transformers, which vLLM has config.json parsed by, knows no MiniCPM: it is told by a file in the folder."""
    return "--trust-remote-code" if model.spec.architecture == "minicpm" else None


def _norms(model: Checkpoint) -> str | None:
    """Its MiniCPM3 makes the norms of latents with the epsilon of all others."""
    latent, eps = model.spec.latent, model.spec.rms_norm_eps
    if latent is None or latent.norm_eps == eps:
        return None
    return f"it adds {eps:g} in the norms of latent attention, where the model's own code adds {latent.norm_eps:g}"


def _usage(model: Checkpoint) -> str:
    return " ".join(filter(None, ("vllm serve FOLDER", _config_class(model))))


def _any(matrix: Matrix) -> str | None:
    """What both kernels refuse."""
    if Role.EMBED in matrix.roles:
        return f"is {matrix.spec}; it takes a dense embedding only"
    if matrix.container == "gptq" and not matrix.spec.symmetric:
        return f"is {matrix.spec}; it takes GPTQ without zero points only"
    return None


def _cpu(matrix: Matrix) -> str | None:
    return _any(matrix) or _cpu_only(matrix)


def _cpu_only(matrix: Matrix) -> str | None:
    spec, (rows, cols) = matrix.spec, matrix.shape
    if Role.LM_HEAD in matrix.roles:
        return f"is {spec}; it takes a dense head only"
    if spec.bits != 4:
        return f"is {spec}; it takes 4 bits only"
    if spec.group_size not in GROUPS and (matrix.container != "compressed-tensors" or spec.group_size % 2):
        return f"is {spec}; it takes groups of 32, 64, 128 or a row"
    if rows % STEP or cols % STEP:
        return f"is {rows} x {cols}; it takes multiples of {STEP}"
    return None


def _marlin(matrix: Matrix) -> str | None:
    return _any(matrix) or _marlin_only(matrix)


def _marlin_only(matrix: Matrix) -> str | None:
    spec, (rows, cols) = matrix.spec, matrix.shape
    if spec.bits != 4 and not (spec.bits == 8 and spec.symmetric):
        return f"is {spec}; it takes 4 bits, or 8 without zero points"
    if spec.group_size not in GROUPS:
        return f"is {spec}; it takes groups of 32, 64, 128 or a row"
    if Role.LM_HEAD in matrix.roles and rows % TILE:
        return f"is {rows} x {cols}; it takes a quantized head in multiples of {TILE} rows, this one dense"
    return None


CPU = KernelRules(
    name="vllm-cpu",
    engine="vllm",
    containers=CONTAINERS,
    architectures=ARCHITECTURES,
    title="vLLM",
    usage=_usage,
    check=_cpu,
    check_model=_model,
    setting=_config_class,
    remark=_norms,
    fuses=True,
)
CUDA_MARLIN = KernelRules(
    name="vllm-cuda-marlin",
    engine="vllm",
    containers=CONTAINERS,
    architectures=ARCHITECTURES,
    title="vLLM",
    usage=_usage,
    check=_marlin,
    check_model=_model,
    setting=_config_class,
    remark=_norms,
    fuses=True,
    pads=True,
)
KERNELS = (CPU, CUDA_MARLIN)
