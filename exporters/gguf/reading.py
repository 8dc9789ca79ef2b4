"""Reading the metadata of a GGUF file, ours or another's: the config, and which tensors hold which codes.

A file without quantkit's two keys is read from its standard keys alone; where both are there, they must agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np

from quantkit.errors import BadConfig, InconsistentCheckpoint, MalformedFile, UnsupportedModel, UnsupportedSpec
from quantkit.exporters.gguf.blocks import F32
from quantkit.exporters.gguf.container.file import GGUFFile
from quantkit.exporters.gguf.families.latent import FIXED_SCALARS, LATENT_KEYS, read_latent
from quantkit.exporters.gguf.keys import Keys
from quantkit.exporters.gguf.metadata import ARCHITECTURES, CONFIG_KEY, QUANTIZATION_KEY, SCALE_KEYS
from quantkit.exporters.gguf.tensors import LONG_FACTORS, SHORT_FACTORS
from quantkit.exporters.gguf.vocabulary import END_KEYS, END_TEXTS
from quantkit.files.json_file import parse_json
from quantkit.models.architectures._rope_spec import longrope_attention_factor
from quantkit.models.architectures.minicpm3 import with_shared_eps
from quantkit.models.config import token_ids_value
from quantkit.models.recognition import parse_config
from quantkit.models.spec import ModelSpec
from quantkit.tensors.scheme import Scheme, scheme_from_json

_KNOWN_KEYS = frozenset(
    {
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.layer_norm_rms_epsilon",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scaling.type",
        "rope.scaling.original_context_length",
        "rope.scaling.attn_factor",
        "vocab_size",
    }
)
"""Keys after the architecture's name that are understood; any other may change what the model computes."""


MODEL = "model"
_OTHER_KINDS = {
    "adapter": ("an adapter (LoRA or alike)", "merge it into its model first, with llama-export-lora"),
    "mmproj": ("the part of a model that sees or hears", "give the file of the language model"),
    "vocab": ("a vocabulary without weights", "give the file of the model itself"),
    "imatrix": ("an importance matrix of llama.cpp", "give the file of the model itself"),
}
"""Values of `general.type` besides `MODEL`: what such a file is, and what to do."""


def read_config(gguf: GGUFFile) -> tuple[Mapping[str, Any], ModelSpec]:
    """config.json and the model that it describes: the source's own config where the file has it.

    llama.cpp takes `rms_norm_eps` in the norms of latents, too, and so does the model that is described.

    Raises:
        UnsupportedModel: another architecture, or a key that may change what the model computes.
        MalformedFile, BadConfig: keys that are missing or wrong.
        InconsistentCheckpoint: `quantkit.config` describes another model than the other keys.
    """
    where = str(gguf.path)
    rebuilt = _standard_config(gguf)
    spec = with_shared_eps(parse_config(rebuilt, where=where))
    _check_attention_factor(gguf, spec)
    text = gguf.metadata.get(CONFIG_KEY)
    if text is None:
        return rebuilt, spec
    if not isinstance(text, str):
        raise MalformedFile(f"{where}: {CONFIG_KEY} must be a string")
    config = parse_json(text.encode("utf-8"), f"{where}: {CONFIG_KEY}")
    own = with_shared_eps(parse_config(config, where=f"{where}: {CONFIG_KEY}"))
    _check_same(own, spec, where)
    return config, own


def _standard_config(gguf: GGUFFile) -> dict[str, Any]:
    """A config.json made of the standard keys."""
    general = Keys(gguf, "general.")
    kind = general.text("type", MODEL)
    if kind != MODEL:
        what, hint = _OTHER_KINDS.get(kind, (f"of the kind {kind[:40]!r}", "give the file of the model itself"))
        raise UnsupportedModel(f"{gguf.path} is no model but {what}", hint=hint)
    arch = general.text("architecture")
    if arch not in ARCHITECTURES:
        raise UnsupportedModel(
            f"{gguf.path}: architecture {arch[:80]!r} is not of this family",
            hint=f"supported: {', '.join(ARCHITECTURES)}",
        )
    keys = Keys(gguf, f"{arch}.")
    _refuse_unknown(gguf, arch)
    layers, hidden = keys.integer("block_count"), keys.integer("embedding_length")
    heads = keys.integer("attention.head_count")
    if not 0 < layers < 1 << 31 or not 0 < heads <= hidden:
        raise BadConfig(f"{gguf.path}: {layers} layers with {heads} heads in {hidden} channels")
    latent = read_latent(keys, hidden // heads) if arch == "minicpm3" else {}
    head_dim = latent.get("qk_rope_head_dim") or _head_dim(keys, hidden // heads)
    embedding = gguf.tensors.get("token_embd.weight")
    tokenizer = Keys(gguf, "tokenizer.ggml.")
    eos = [index for key in END_KEYS if (index := tokenizer.optional_id(key)) is not None]
    texts = gguf.metadata.get("tokenizer.ggml.tokens")
    eos += [texts.index(text) for text in END_TEXTS if isinstance(texts, list) and text in texts]
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[arch]],
        "model_type": arch,
        "vocab_size": keys.integer("vocab_size", embedding.shape[0] if embedding else None),
        "hidden_size": hidden,
        "intermediate_size": keys.integer("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.integer("attention.head_count_kv", heads),
        **({} if latent else {"head_dim": head_dim}),
        "hidden_act": "silu",
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": keys.integer("context_length"),
        "rope_theta": keys.number("rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(gguf, keys, head_dim, explicit=arch == "llama"),
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "bos_token_id": tokenizer.optional_id("bos_token_id"),
        "eos_token_id": token_ids_value(list(dict.fromkeys(eos))),
        "pad_token_id": tokenizer.optional_id("padding_token_id"),
    }
    if tokenizer.text("model", "none") == "llama":  # the config's defaults are llama.cpp's for such a tokenizer
        config = {k: v for k, v in config.items() if k not in ("bos_token_id", "eos_token_id") or v is not None}
    if arch == "llama":
        return config
    return {**config, **latent, **(FIXED_SCALARS if latent else _scales(gguf, keys, layers, hidden))}


def _head_dim(keys: Keys, usual: int) -> int:
    """Channels of a head, which are those of its values, and all of which are rotated."""
    head_dim = keys.integer("attention.key_length", usual)
    for key in ("attention.value_length", "rope.dimension_count"):
        if keys.integer(key, head_dim) != head_dim:
            raise UnsupportedModel(
                f"{keys.gguf.path}: {keys.prefix}{key} {keys.integer(key)} differs from head size {head_dim}"
            )
    return head_dim


def _refuse_unknown(gguf: GGUFFile, arch: str) -> None:
    own = {"minicpm": SCALE_KEYS, "minicpm3": LATENT_KEYS}.get(arch, ())
    known = {f"{arch}.{key}" for key in _KNOWN_KEYS | set(own)}
    for key in gguf.metadata:
        if key.startswith(f"{arch}.") and key not in known:
            raise UnsupportedModel(f"{gguf.path}: key {key!r} is not understood and may change the model")


def _rope_scaling(gguf: GGUFFile, keys: Keys, head_dim: int, *, explicit: bool) -> dict[str, Any] | None:
    """`rope_scaling` of a config; `explicit`: with another attention factor than LongRoPE's own where there is one."""
    kind = keys.text("rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind != "longrope":
        raise UnsupportedModel(f"{gguf.path}: rope scaling {kind[:80]!r} is not supported; only longrope")
    context = keys.integer("context_length")
    original = keys.integer("rope.scaling.original_context_length", context)
    factor = _attention_factor(keys)
    usual = original < 2 or _close(factor, longrope_attention_factor(context / original, original))  # 0, 1: refused
    return {
        **({"attention_factor": factor} if explicit and not usual else {}),
        "rope_type": "longrope",
        "long_factor": _factors(gguf, LONG_FACTORS, head_dim // 2),
        "short_factor": _factors(gguf, SHORT_FACTORS, head_dim // 2),
        "original_max_position_embeddings": original,
    }


def _factors(gguf: GGUFFile, name: str, count: int) -> list[float]:
    info = gguf.tensors.get(name)
    if info is None or info.shape != (count,) or info.type is not F32:
        raise MalformedFile(f"{gguf.path}: longrope needs the tensor {name!r}, {count} values of type F32")
    return [float(str(value)) for value in gguf.rows(name, 0, count).view("<f4")[:, 0]]


def _scales(gguf: GGUFFile, keys: Keys, layers: int, hidden: int) -> dict[str, float]:
    """MiniCPM's three scalars as its config has them.

    Files of old converters lack them, and what engines assume instead is not what the model was trained with.
    """
    missing = [key for key in SCALE_KEYS if keys.prefix + key not in gguf.metadata]
    if missing:
        raise UnsupportedModel(
            f"{gguf.path}: key {keys.prefix + missing[0]!r} is missing", hint="convert the original model anew"
        )
    embedding, residual, logit = (keys.number(key) for key in SCALE_KEYS)
    if not all(1e-9 < value < 1e9 for value in (embedding, residual, logit)):
        raise BadConfig(f"{gguf.path}: {', '.join(SCALE_KEYS)} must be positive and of sane size")
    root = math.sqrt(layers)
    return {
        "scale_emb": embedding,
        "scale_depth": _rounded(residual * root, lambda depth: np.float32(depth / root) == np.float32(residual)),
        "dim_model_base": _rounded(hidden / logit, lambda base: np.float32(hidden / base) == np.float32(logit)),
    }


def _rounded(value: float, same: Callable[[float], Any]) -> float:
    """The shortest decimal that still is `same`: configs say 1.4, not 1.3999999668."""
    for digits in range(1, 9):
        candidate = float(f"{value:.{digits}g}")
        if same(candidate):
            return candidate
    return value


def _attention_factor(keys: Keys) -> float:
    """What llama.cpp multiplies cos and sin by: 1 where the file does not say."""
    return keys.number("rope.scaling.attn_factor", 1.0)


def _check_attention_factor(gguf: GGUFFile, spec: ModelSpec) -> None:
    """Refuse an attn_factor that is not LongRoPE's own for these context lengths: the config cannot express it."""
    keys = Keys(gguf, f"{spec.architecture}.")
    if spec.rope.kind == "longrope" and not _close(_attention_factor(keys), spec.rope.attention_factor):
        said = "is" if f"{keys.prefix}rope.scaling.attn_factor" in gguf.metadata else "is not there, which makes it"
        raise InconsistentCheckpoint(
            f"{gguf.path}: {keys.prefix}rope.scaling.attn_factor {said} {_attention_factor(keys)}; "
            f"LongRoPE makes it {spec.rope.attention_factor:.7g}"
        )


def _check_same(own: ModelSpec, standard: ModelSpec, where: str) -> None:
    """Refuse a `quantkit.config` that describes another model than the standard keys, to float32's precision."""
    for name in (field.name for field in fields(ModelSpec) if field.compare):
        if name in ("rope", "bos_token_id", "eos_token_ids", "pad_token_id"):
            continue
        one, other = getattr(own, name), getattr(standard, name)
        if not _close(one, other):
            raise InconsistentCheckpoint(f"{where}: {CONFIG_KEY} says {name} {one}, the other keys say {other}")
    rope = own.rope
    if rope.kind == "dynamic":  # the other keys cannot say it; within the context it is plain
        rope = replace(rope, kind="default", factor=1.0, original_max_position_embeddings=0)
    for name in (field.name for field in fields(rope)):
        one, other = getattr(rope, name), getattr(standard.rope, name)
        if not _close(one, other):
            raise InconsistentCheckpoint(f"{where}: {CONFIG_KEY} says rope {name} {one}, the other keys say {other}")


def _close(one: object, other: object) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_close, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-6)
    return one == other


def read_quantization(gguf: GGUFFile) -> dict[str, Scheme]:
    """Inverse of `quantization_entries`; empty for a file of another writer.

    Raises:
        MalformedFile: a value of another shape, or that is no scheme.
    """
    text = gguf.metadata.get(QUANTIZATION_KEY)
    if text is None:
        return {}
    where = f"{gguf.path}: {QUANTIZATION_KEY}"
    if not isinstance(text, str):
        raise MalformedFile(f"{where} must be a string")
    groups = parse_json(text.encode("utf-8"), where).get("groups")
    schemes: dict[str, Scheme] = {}
    for group in groups if isinstance(groups, list) else [None]:
        if not isinstance(group, dict) or not isinstance(group.get("tensors"), list):
            raise MalformedFile(f"{where} must be a list of groups")
        scheme = _scheme(group.get("spec"), where)
        schemes |= {name: scheme for name in group["tensors"] if isinstance(name, str)}
    return schemes


def _scheme(value: object, where: str) -> Scheme:
    try:
        if isinstance(value, dict):
            return scheme_from_json(value)
    except UnsupportedSpec as error:
        raise MalformedFile(f"{where}: {error}", hint=error.hint) from None
    raise MalformedFile(f"{where}: {str(value)[:80]!r} is not a quantization")
