"""Faults of the config: every number that the forward pass reads, each wrong in a way that some converter got it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks.faults.fault import SPEC_TRIALS, Fault, Level, NotApplicable
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.recognition import parse_config
from quantkit.tensors.views import TensorView

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def with_config(model: Checkpoint, changes: Mapping[str, Any]) -> Checkpoint:
    """`model` with keys of its config set; a change to None removes the key."""
    config = {key: value for key, value in {**model.config, **changes}.items() if value is not None}
    return replace(model, config=config, spec=parse_config(config))


def scaled(key: str, factor: float, default: float) -> Callable[[Checkpoint], Checkpoint]:
    """A number of the config times `factor`."""
    return lambda model: with_config(model, {key: model.config.get(key, default) * factor})


def with_heads(model: Checkpoint, factor: float) -> Checkpoint:
    """As many times the heads, each as much narrower: every matrix keeps its shape."""
    spec = model.spec
    heads, keys = int(spec.num_attention_heads * factor), int(spec.num_key_value_heads * factor)
    if keys < 1 or spec.head_dim % (4 * factor):
        raise NotApplicable("heads cannot be divided so")
    changes: dict[str, Any] = {"num_attention_heads": heads, "num_key_value_heads": keys}
    changes["head_dim"] = int(spec.head_dim / factor) if "head_dim" in model.config else None
    scaling = dict(model.config.get("rope_scaling") or {})
    for name in ("long_factor", "short_factor"):
        if name in scaling:
            scaling[name] = _resampled(scaling[name], int(spec.head_dim / factor) // 2)
    return with_config(model, {**changes, "rope_scaling": scaling or None})


def _resampled(values: list[float], count: int) -> list[float]:
    return [values[i * len(values) // count] for i in range(count)]


def with_rope(model: Checkpoint, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Checkpoint:
    """`model` with its LongRoPE parameters changed."""
    if not model.config.get("rope_scaling"):
        raise NotApplicable("no LongRoPE")
    return with_config(model, {"rope_scaling": change(dict(model.config["rope_scaling"]))})


def swap_factors(rope: dict[str, Any]) -> dict[str, Any]:
    """Long factors for short texts, short ones for long."""
    return {**rope, "long_factor": rope["short_factor"], "short_factor": rope["long_factor"]}


def copy_short_factors(rope: dict[str, Any]) -> dict[str, Any]:
    """Short factors for long texts, too."""
    return {**rope, "long_factor": rope["short_factor"]}


def change_factor(rope: dict[str, Any], name: str) -> dict[str, Any]:
    """One factor a twentieth larger."""
    values = list(rope[name])
    values[len(values) // 2] *= 1.05
    return {**rope, name: values}


def reverse_factors(rope: dict[str, Any]) -> dict[str, Any]:
    """Factors of the fast channels for the slow ones."""
    return {**rope, "short_factor": rope["short_factor"][::-1], "long_factor": rope["long_factor"][::-1]}


def halve_original_context(rope: dict[str, Any]) -> dict[str, Any]:
    """Half the context of the training: other factors sooner, and cos and sin scaled otherwise."""
    return {**rope, "original_max_position_embeddings": rope["original_max_position_embeddings"] // 2}


def untied(model: Checkpoint) -> Checkpoint:
    """A head of its own that repeats the embedding, or no head where there was one."""
    tied = not model.spec.tie_word_embeddings
    changed = with_config(model, {"tie_word_embeddings": tied})
    weights = dict(model.weights)
    if tied:
        del weights[HEAD]
    else:
        embedding = weights[EMBEDDING]
        assert isinstance(embedding, TensorView)
        weights[HEAD] = replace(embedding, name=HEAD)
    return replace(changed, weights={slot.name: weights[slot.name] for slot in changed.spec.slots()})


CHANGES: Mapping[str, Callable[[Checkpoint], Checkpoint]] = {
    "rope_theta doubled": scaled("rope_theta", 2, 10000.0),
    "rope_theta x 1.001": scaled("rope_theta", 1.001, 10000.0),
    "scale_emb 12 -> 11": scaled("scale_emb", 11 / 12, 1),
    "scale_emb lost": lambda model: with_config(model, {"scale_emb": 1}),
    "scale_depth 1.4 -> 1.5": scaled("scale_depth", 1.5 / 1.4, 1),
    "dim_model_base 64 -> 66": scaled("dim_model_base", 66 / 64, 1),
    "rms_norm_eps x 100": scaled("rms_norm_eps", 100, 1e-6),
    "rms_norm_eps 1e-5 -> 1e-6": scaled("rms_norm_eps", 0.1, 1e-6),
    "twice the heads, half as wide": partial(with_heads, factor=2),
    "half the heads, twice as wide": partial(with_heads, factor=0.5),
    "max_position_embeddings doubled": lambda model: with_config(
        model, {"max_position_embeddings": 2 * model.spec.max_position_embeddings}
    ),
    "original_max_position_embeddings halved": partial(with_rope, change=halve_original_context),
    "LongRoPE dropped": lambda model: with_config(model, {"rope_scaling": None}),
    "long and short factors swapped": partial(with_rope, change=swap_factors),
    "long factors = short factors": partial(with_rope, change=copy_short_factors),
    "one short factor x 1.05": partial(with_rope, change=partial(change_factor, name="short_factor")),
    "one long factor x 1.05": partial(with_rope, change=partial(change_factor, name="long_factor")),
    "factors reversed": partial(with_rope, change=reverse_factors),
    "tie flag flipped": untied,
}

FAULTS = tuple(
    Fault(name=name, kind="scalars", level=Level.SOURCE, change=change, trials=SPEC_TRIALS)
    for name, change in CHANGES.items()
)
