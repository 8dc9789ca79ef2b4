"""MiniCPM, MiniCPM4, MiniCPM4.1 and BitCPM4: a Llama with three scalars.

Embeddings times `scale_emb`, every residual branch times `scale_depth / sqrt(num_hidden_layers)`, and hidden states
divided by `hidden_size / dim_model_base` before the head. The family's default ties embeddings, where generic loaders
assume that they are not, and `rope_theta` is 10000, where some assume 1e6.

Source: OpenBMB `configuration_minicpm.py` (defaults), `modeling_minicpm.py`.
"""

from __future__ import annotations

import math

from quantkit.models.architectures._dense_decoder import DenseDecoder, Scalars
from quantkit.models.architectures._rope import MINICPM_TYPES
from quantkit.models.config_reader import ConfigReader

SCALE = (1e-4, 1e4)
"""What scale_emb and scale_depth may be; released models have 12 and 1.4."""
BASE = (0.1, 1e6)
"""What dim_model_base may be; released models have 256."""


def scalars(reader: ConfigReader, hidden: int, layers: int) -> Scalars:
    """The three scalars; where the config has none they are those of the remote code's defaults."""
    return Scalars(
        scale_emb=reader.number("scale_emb", *SCALE, default=1.0),
        residual_scale=reader.number("scale_depth", *SCALE, default=1.0) / math.sqrt(layers),
        logit_divisor=hidden / reader.number("dim_model_base", *BASE, default=1.0),
    )


ARCHITECTURE = DenseDecoder(
    name="minicpm",
    summary="MiniCPMForCausalLM (MiniCPM, MiniCPM4, MiniCPM4.1, BitCPM4)",
    classes=("MiniCPMForCausalLM", "MiniCPM4ForCausalLM"),
    model_types=("minicpm", "minicpm4"),
    scalars=scalars,
    scalar_keys=("scale_emb", "scale_depth", "dim_model_base"),
    carried_keys=("sparse_config", "mup_denominator"),
    ties_embeddings=True,
    rope_types=MINICPM_TYPES,
    reads_attention_factor=False,
    remarks={
        "sparse_config": "describes sparse attention; calibration and most engines go by dense attention, and "
        "so do `run` and `verify` without --attention sparse"
    },
)
