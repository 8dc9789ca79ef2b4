"""Folders whose weights another tool has quantized: by whom, told from config.json or from names of tensors.

Which quantized containers are read is known to the exporters; what is asked here is only what to say of the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from quantkit.errors import UnsupportedModel

_TRANSFORMERS = "in transformers, load it with {}(dequantize=True), then save_pretrained"
_QUANTIZERS: Mapping[str, tuple[str, str]] = {
    "aqlm": ("AQLM", ""),
    "auto-round": ("AutoRound", "write it with AutoRound's format auto_gptq, which is read"),
    "awq": ("AWQ", ""),
    "bitnet": ("BitNet", ""),
    "bitsandbytes": (
        "bitsandbytes",
        "in transformers, where bitsandbytes runs, load it, call dequantize(), then save_pretrained",
    ),
    "compressed-tensors": ("compressed-tensors", _TRANSFORMERS.format("CompressedTensorsConfig")),
    "deepspeedfp": ("DeepSpeed's FP quantizer", ""),
    "eetq": ("EETQ", ""),
    "exl2": ("ExLlamaV2 (EXL2)", ""),
    "exl3": ("ExLlamaV3 (EXL3)", ""),
    "experts_int8": ("vLLM's experts_int8", ""),
    "fbgemm_fp8": ("FBGEMM, in FP8", ""),
    "fp8": ("the fine-grained FP8 method", _TRANSFORMERS.format("FineGrainedFP8Config")),
    "fp_quant": ("FP-Quant", ""),
    "gptq": ("GPTQ", ""),
    "higgs": ("HIGGS", "in transformers, where HIGGS runs, load it, call dequantize(), then save_pretrained"),
    "hqq": ("HQQ", ""),
    "metal": ("Metal kernels of transformers", _TRANSFORMERS.format("MetalConfig")),
    "mlx": ("MLX", "on a Mac, `mlx_lm.convert --dequantize` writes its values"),
    "modelopt": ("NVIDIA's ModelOpt", ""),
    "modelopt_fp4": ("NVIDIA's ModelOpt, in NVFP4", ""),
    "mxfp4": ("the MXFP4 method", _TRANSFORMERS.format("Mxfp4Config")),
    "nvfp4": ("the NVFP4 method", ""),
    "quanto": ("Quanto", ""),
    "quark": ("AMD's Quark", ""),
    "quip": ("QuIP#", ""),
    "spqr": ("SpQR", ""),
    "torchao": ("torchao", ""),
    "vptq": ("VPTQ", ""),
}
"""`quant_method` to the name that people know, and how to turn it back where the tool can."""
_ALIASES = {"finegrained_fp8": "fp8", "optimum-quanto": "quanto", "quip#": "quip", "quip_sharp": "quip"}
_TRACES: tuple[tuple[str, str], ...] = (
    (".SCB", "bitsandbytes"),
    (".absmax", "bitsandbytes"),
    (".quant_map", "bitsandbytes"),
    ("bitsandbytes__nf4", "bitsandbytes"),
    ("bitsandbytes__fp4", "bitsandbytes"),
    (".weight_scale_inv", "fp8"),
    (".W_q", "hqq"),
    (".codebooks", "aqlm"),
    (".Qidxs", "quip"),
    (".q_weight", "exl2"),
    (".trellis", "exl3"),
    (".weight_packed", "compressed-tensors"),
    (".weight._data", "quanto"),
    ("_blocks", "mxfp4"),
    (".biases", "mlx"),
    (".qweight", "gptq"),
)
"""Endings of names that only one tool gives its tensors."""


def refuse_quantized(config: Mapping[str, Any], tensors: Iterable[str], where: str) -> None:
    """Raise `UnsupportedModel` for weights that another tool has quantized, and say which.

    Args:
        config: config.json. tensors: names of the tensors, where they can be read.
        where: the folder, for messages.
    """
    method = _named(config)
    said = "config.json says so"
    if method is None:
        trace = next(((name, tool) for end, tool in _TRACES for name in tensors if name.endswith(end)), None)
        if trace is None:
            return
        said, method = f"tensor {trace[0][:80]!r} tells", trace[1]
    known = _ALIASES.get(method.lower(), method.lower())
    unknown = f"{method[:40]!r}, which is not known here" if method else "a method that it does not name"
    name, back = _QUANTIZERS.get(known, (unknown, ""))
    raise UnsupportedModel(
        f"{where}: the weights are already quantized by {name} ({said}), in a form that is not read",
        hint="take the original checkpoint, with 16 or 32 bits a weight" + (f"; or {back}" if back else ""),
    )


def _named(config: Mapping[str, Any]) -> str | None:
    """The method that a config names, or that its keys tell; empty for none, None where it tells of no quantization."""
    for key in ("quantization_config", "compression_config", "quantization"):
        settings = config.get(key)
        if not settings:
            continue
        if not isinstance(settings, Mapping):
            return str(settings)[:80]
        method = settings.get("quant_method")
        if isinstance(method, str) and method:
            return method
        if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
            return "bitsandbytes"
        producer = settings.get("producer")
        if isinstance(producer, Mapping) and isinstance(producer.get("name"), str):
            return str(producer["name"])
        return "mlx" if {"bits", "group_size"} <= settings.keys() else ""
    return "quip" if "quip_params" in config else None
