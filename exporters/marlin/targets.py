"""The two layouts of Marlin and what config.json says in each: written for one engine, read from anybody.

CPM.cu reads `quantization_config.group_size` and nothing else of it; the remaining keys are what other tools need to
see that this is no GPTQ. It takes its dense loader unless the path holds one of `NAME_KEYWORDS`, its sparse attention
when num_hidden_layers / num_key_value_heads is 16, and an EAGLE head only when `SCALARS` equal those of the head's
own config. It computes rotary frequencies from `rope_scaling` for one context length and ignores the attention
factor. Source: CPM.cu `cpmcu/llm_w4a16_gptq_marlin.py`, `cpmcu/common/utils.py`, `cpmcu/speculative/eagle.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from quantkit.errors import BadOption, UnsupportedSpec
from quantkit.exporters._hf_config import native_config
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import ModelSpec, Role
from quantkit.tensors.scheme import PER_ROW
from quantkit.tensors.schemes.affine_groups import AffineGroups

NAME = "marlin"
BITS = 4
GROUP_SIZES = (128, PER_ROW)
CHECKPOINT_FORMAT = "marlin"
CPM_CU_STEM = "model_gptq"
CPM_CU_FILES = ("model_gptq.safetensors", "model_gptq_marlin.safetensors")
"""Names under which CPM.cu's own converters write; their config.json is still that of the GPTQ source."""

NAME_KEYWORDS = ("marlin", "gptq", "quant", "awq", "int4", "int8", "w4a16", "qat")
SCALARS = ("scale_emb", "dim_model_base", "scale_depth")
FAMILIES = ("minicpm", "llama")
"""Architectures that CPM.cu computes."""
SPARSE_RATIO, SPARSE_KEY_HEADS, SPARSE_GROUP = 16, 2, 16
"""Layers per key/value head at which CPM.cu takes its sparse kernels; the heads that these are built for."""


@dataclass(frozen=True, slots=True)
class Target:
    """One layout.

    fused: which linear layers make one matrix, side by side along its rows, and the name of its module in a
        block; None = that of the one layer.
    words, scales: the parts of a matrix. row_step, col_step: what rows and columns must be multiples of.
    """

    name: str
    fused: Mapping[tuple[Role, ...], str | None]
    words: str
    scales: str
    row_step: int
    col_step: int


CPM_CU = Target(
    name="cpm.cu",
    fused={
        (Role.Q, Role.K, Role.V): "self_attn.qkv_proj",
        (Role.O,): None,
        (Role.GATE, Role.UP): "mlp.gate_up_proj",
        (Role.DOWN,): None,
    },
    words="qweight",
    scales="scales",
    row_step=64,
    col_step=64,
)
IST = Target(
    name="ist",
    fused={(role,): None for roles in CPM_CU.fused for role in roles},
    words="B",
    scales="s",
    row_step=256,
    col_step=128,
)
TARGETS = {target.name: target for target in (CPM_CU, IST)}


def chosen(name: str | None) -> Target:
    """The target `name`, by default CPM.cu's; raises `BadOption` for an unknown one."""
    if name is None:
        return CPM_CU
    if name not in TARGETS:
        raise BadOption(f"{NAME} has no target {name!r}", hint=f"targets of {NAME}: {', '.join(TARGETS)}")
    return TARGETS[name]


def written_config(model: Checkpoint, target: Target, group_size: int) -> dict[str, Any]:
    """config.json of `model`, without its dtype: for CPM.cu with every key spoken out that the engine reads."""
    config = {**native_config(model), "quantization_config": quantization_config(group_size)}
    if target is CPM_CU and model.spec.architecture == "minicpm":
        config |= {key: 1.0 if config.get(key) is None else config[key] for key in SCALARS}
    return config


def quantization_config(group_size: int) -> dict[str, Any]:
    """The same for both layouts; for the kernel's own, loaders want it in quantize_config.json as well."""
    return {
        "bits": BITS,
        "checkpoint_format": CHECKPOINT_FORMAT,
        "desc_act": False,
        "group_size": group_size,
        "is_marlin_format": True,
        "lm_head": False,
        "quant_method": "gptq",
        "static_groups": True,
        "sym": True,
    }


def check_rope(model: Checkpoint, target: Target) -> None:
    """Raise `UnsupportedSpec` for a LongRoPE, or a family, with which CPM.cu would compute something else."""
    rope = model.spec.rope
    if target is not CPM_CU:
        return
    if model.spec.architecture not in FAMILIES:
        raise UnsupportedSpec(
            f"{model.path}: CPM.cu knows no {model.spec.architecture}", hint="fold it into a Llama: --arch llama"
        )
    if rope.kind == "dynamic":
        raise UnsupportedSpec(
            f"{model.path}: CPM.cu computes rotary frequencies once, and has no dynamic NTK",
            hint="write another container, or remove rope_scaling from config.json and keep to its context of "
            f"{rope.original_max_position_embeddings} tokens",
        )
    if rope.short_factor != rope.long_factor:
        raise UnsupportedSpec(
            f"{model.path}: {NAME} for CPM.cu needs short_factor equal to long_factor in rope_scaling; the engine "
            "takes one of the two for every context length",
            hint="choose the factors for the context that you need and write them into both lists of config.json",
        )
    if model.spec.explicit_attention_factor is not None:
        raise UnsupportedSpec(
            f"{model.path}: CPM.cu ignores the attention factor {rope.attention_factor:g} that the config names",
            hint="write another container",
        )
    if rope.attention_factor != 1.0:
        raise UnsupportedSpec(
            f"{model.path}: {NAME} for CPM.cu needs max_position_embeddings of at most "
            f"original_max_position_embeddings; the engine ignores the attention factor {rope.attention_factor:g}",
            hint=f"lower max_position_embeddings in config.json to {rope.original_max_position_embeddings}",
        )


def notes_on(spec: ModelSpec, target: Target) -> Iterator[str]:
    """What the user of CPM.cu should know of this model, one line each."""
    if target is not CPM_CU:
        return
    if spec.architecture == "llama":
        yield "CPM.cu takes no EAGLE head of a MiniCPM for a plain Llama; export with --arch native to use one"
    elif spec.num_hidden_layers == SPARSE_RATIO * spec.num_key_value_heads and (
        spec.num_key_value_heads != SPARSE_KEY_HEADS or spec.num_attention_heads != SPARSE_GROUP * SPARSE_KEY_HEADS
    ):
        yield (
            "CPM.cu takes this shape for one that its sparse attention is built for, which it is not; "
            "run it with --model-type minicpm"
        )


def described(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The `quantization_config` of a folder that may be Marlin's, None when it is another method's."""
    settings = config.get("quantization_config")
    if not isinstance(settings, Mapping) or settings.get("quant_method", "gptq") not in ("gptq", NAME):
        return None
    return settings


def says_marlin(settings: Mapping[str, Any]) -> bool:
    """Whether the settings themselves, rather than a file's name, say that the order is Marlin's."""
    return bool(settings.get("is_marlin_format")) or CHECKPOINT_FORMAT in (
        settings.get("checkpoint_format"),
        settings.get("quant_method"),
    )


def read_grid(settings: Mapping[str, Any], where: str) -> AffineGroups:
    """The one grid of a folder, with float16 scales; raises `UnsupportedSpec` for what Marlin cannot be."""
    fixed: Mapping[str, Any] = {"bits": BITS, "sym": True, "desc_act": False, "lm_head": False}
    for key, value in fixed.items():
        found = settings.get(key, value)
        if found != value or type(found) is not type(value):
            raise UnsupportedSpec(f"{where}: {key} {str(found)[:80]!r} is not supported; {NAME} has only {value}")
    group_size = settings.get("group_size")
    if type(group_size) is not int or group_size not in GROUP_SIZES:
        raise UnsupportedSpec(
            f"{where}: group_size {str(group_size)[:80]!r} is not supported; {NAME} has only 128 and -1"
        )
    return AffineGroups(bits=BITS, group_size=group_size)
