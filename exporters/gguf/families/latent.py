"""llama.cpp's architecture `minicpm3`: keys of latent attention, and what its graph has in place of keys.

    attention.q_lora_rank, kv_lora_rank          channels of the latents
    attention.key_length, value_length           of a head: unrotated and rotated part together, and values
    rope.dimension_count                         the rotated part

MiniCPM's three scalars are numbers in the code of the graph (`FIXED_SCALARS`): a file cannot say others. Every norm
adds attention.layer_norm_rms_epsilon, those of the latents as well. Rows are as in the original: the graph rotates
channel i with i + d/2. Source: llama.cpp `src/models/minicpm3.cpp`, `conversion/minicpm.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from quantkit.errors import BadConfig, UnsupportedSpec
from quantkit.exporters.gguf.keys import Keys
from quantkit.models.architectures._latent import NORM_EPS
from quantkit.models.spec import ModelSpec

LATENT_KEYS = ("attention.q_lora_rank", "attention.kv_lora_rank")
"""Those that other architectures here do not have."""
FIXED_SCALARS: Mapping[str, float] = {"scale_emb": 12.0, "scale_depth": 1.4, "dim_model_base": 256.0}


def latent_keys(spec: ModelSpec) -> dict[str, int]:
    """The keys, without the architecture's name.

    Raises:
        UnsupportedSpec: scalars that are not those of the graph.
    """
    latent = spec.latent
    assert latent is not None
    _check_scalars(spec)
    return {
        "attention.q_lora_rank": latent.q_lora_rank,
        "attention.kv_lora_rank": latent.kv_lora_rank,
        "attention.key_length": latent.qk_head_dim,
        "attention.value_length": latent.v_head_dim,
    }


def _check_scalars(spec: ModelSpec) -> None:
    fixed = {
        "scale_emb": (spec.scale_emb, FIXED_SCALARS["scale_emb"]),
        "scale_depth": (spec.residual_scale * math.sqrt(spec.num_hidden_layers), FIXED_SCALARS["scale_depth"]),
        "dim_model_base": (spec.hidden_size / spec.logit_divisor, FIXED_SCALARS["dim_model_base"]),
    }
    for key, (found, wanted) in fixed.items():
        if not math.isclose(found, wanted, rel_tol=1e-6):
            raise UnsupportedSpec(
                f"gguf: {key} is {found:g}, and llama.cpp's minicpm3 computes with {wanted:g} whatever a file says",
                hint="write hf, compressed-tensors or awq, whose engines read it",
            )


def read_latent(keys: Keys, usual: int) -> dict[str, int]:
    """Inverse of `latent_keys` and of rope.dimension_count, in the words of config.json.

    usual: channels of a head's values where the file does not say.

    Raises:
        MalformedFile: a key is missing or no integer.
        BadConfig: a head of which nothing is left beside the rotated part.
    """
    whole, rope = keys.integer("attention.key_length"), keys.integer("rope.dimension_count")
    if not 0 < rope < whole:
        raise BadConfig(
            f"{keys.gguf.path}: {keys.prefix}rope.dimension_count {rope} is no part of attention.key_length {whole}"
        )
    return {
        "q_lora_rank": keys.integer("attention.q_lora_rank"),
        "kv_lora_rank": keys.integer("attention.kv_lora_rank"),
        "qk_nope_head_dim": whole - rope,
        "qk_rope_head_dim": rope,
        "v_head_dim": keys.integer("attention.value_length", usual),
    }


def eps_notes(spec: ModelSpec) -> Iterator[str]:
    """What the user should know of the norms of the latents."""
    if spec.latent is not None and spec.rms_norm_eps != NORM_EPS:
        yield (
            f"llama.cpp adds {spec.rms_norm_eps:g} in the norms of latent attention, as in all others; the model's own "
            f"code adds {NORM_EPS:g} there"
        )
