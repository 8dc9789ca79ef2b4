"""MiniCPM-V and MiniCPM-o: the text model inside, which is a model of its own under the prefix `llm.`.

config.json describes it at the top level, among keys of the towers for pictures and sound. Which family it is follows
from the scalars of a MiniCPM, where the config has them, else from `version`, which loaders go by: the text model of
MiniCPM-V-4 is "MiniCPM4-3B", whose class is Llama's. What a Llama computes is taken whatever it is called; biases and
norms of queries and keys are another family's, and refused by its name.

Sources: OpenBMB's code for MiniCPM-V-4, whose `MiniCPMVConfig` is a `LlamaConfig`; vLLM 0.32.0, models minicpmv
(`get_version_by_config`, `init_llm`) and minicpmo.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from quantkit.errors import UnsupportedModel

CLASSES = ("MiniCPMV", "MiniCPMO")
MODEL_TYPES = ("minicpmv", "minicpmo")
SCALARS = ("scale_emb", "scale_depth", "dim_model_base")
REQUIRED = ("hidden_size", "num_hidden_layers")
"""Keys without which a config describes no text model."""

HYBRID = "a hybrid of linear and full attention (Qwen3.5)"
WHOLE_CLASSES: Mapping[str, tuple[str, str]] = {
    "MiniCPMV4_6ForConditionalGeneration": ("MiniCPM-V-4.6", HYBRID),
    "MiniCPMV4_7ForConditionalGeneration": ("MiniCPM-V-4.7", HYBRID),
}
"""Classes of transformers for members whose text model is of no family here: the member, and what it has inside."""

TEXT_FAMILIES: Mapping[tuple[str, str], str] = {
    ("MiniCPMV", "2.6"): "Qwen2",
    ("MiniCPMV", "4.5"): "Qwen3",
    ("MiniCPMO", "2.6"): "Qwen2",
    ("MiniCPMO", "4.5"): "Qwen3",
}
"""Members by class and `version` whose text model is of another family."""
FAMILY_TENSORS: Mapping[str, str] = {
    ".self_attn.q_norm.weight": "Qwen3 (norms of queries and keys)",
    ".self_attn.q_proj.bias": "Qwen2 (biases of queries, keys and values)",
    ".mlp.experts.": "a mixture of experts",
}
"""Parts of tensor names that a Llama has not, and whose they are."""

TOWER_KEYS = frozenset(
    {
        "vision_config", "audio_config", "tts_config", "slice_config", "slice_mode", "query_num", "image_size",
        "patch_size", "version", "drop_vision_last_layer", "batch_vision_input", "use_image_id", "vision_batch_size",
        "vision_encoder", "mm_use_im_start_end", "mm_vision_tower", "audio_pool_step", "audio_chunk_length",
        "stream_input", "init_vision", "init_audio", "init_tts", "chunk_input", "batch_3d_resampler", "auto_map"
    }
)  # fmt: skip
"""Keys that describe the towers, and code."""


def is_multimodal(config: Mapping[str, Any]) -> bool:
    """Whether a config is that of a MiniCPM-V or -o, by its class, or its `model_type` where it names none."""
    names = config.get("architectures") or []
    if isinstance(names, list) and names:
        return any(name in CLASSES or name in WHOLE_CLASSES for name in names if isinstance(name, str))
    return config.get("model_type") in MODEL_TYPES


def text_config(config: Mapping[str, Any], names: Iterable[str], *, where: str) -> dict[str, Any]:
    """The config of the text model inside a multimodal one.

    Args:
        config: config.json.
        names: of all tensors, which tell what the text model is made of.
        where: begins every message.

    Raises:
        UnsupportedModel: it is of another family, or the config does not describe it.
    """
    _check_family(config, names, where)
    missing = [key for key in REQUIRED if key not in config]
    present = [key for key in SCALARS if key in config]
    if present:
        missing += [key for key in SCALARS if key not in config]
    if missing:
        raise UnsupportedModel(
            f"{where}: the text model under 'llm.' is not one that this config describes: no {missing[0]}",
            hint="extract the text model to a folder of its own, with its own config.json",
        )
    text = {key: value for key, value in config.items() if key not in TOWER_KEYS}
    named = ("MiniCPMForCausalLM", "minicpm") if present else ("LlamaForCausalLM", "llama")
    return {**text, "architectures": [named[0]], "model_type": named[1]}


def _check_family(config: Mapping[str, Any], names: Iterable[str], where: str) -> None:
    """Refuse a text model that is neither a MiniCPM nor what a Llama computes, by its name."""
    classes = [name for name in config.get("architectures") or [] if isinstance(name, str)]
    member = next((WHOLE_CLASSES[name] for name in classes if name in WHOLE_CLASSES), None)
    if member is None:
        version = str(config.get("version"))
        spelled = {"MiniCPMV": "MiniCPM-V", "MiniCPMO": "MiniCPM-o"}
        known = next((name for name in classes if (name, version) in TEXT_FAMILIES), None)
        if known is not None:
            member = (f"{spelled[known]}-{version}", TEXT_FAMILIES[known, version])
    if member is None:
        text = [name for name in names if ".layers.0." in name and name.startswith("llm.")]
        found = next((family for part, family in FAMILY_TENSORS.items() if any(part in name for name in text)), None)
        member = ("the multimodal model", found) if found is not None else None
    if member is not None:
        raise UnsupportedModel(
            f"{where}: the text model of {member[0]} is {member[1]}, not a MiniCPM or a Llama",
            hint="members with a MiniCPM or a Llama inside: MiniCPM-V, -V-2, MiniCPM-Llama3-V-2.5, MiniCPM-V-4",
        )
