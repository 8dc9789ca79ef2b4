"""What mlx-lm takes where a config says nothing; its own conversions copy configs that leave things out.

MiniCPM4-0.5B's config has neither `rope_theta` nor `tie_word_embeddings`: OpenBMB's code takes 10000 and ties, mlx-lm's
class takes 1000000 and does not. A folder of mlx-lm is read as mlx-lm computes it. Source: mlx-lm 0.32.2
`models/minicpm.py`, `models/llama.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "minicpm": {"rope_theta": 1000000.0, "tie_word_embeddings": False},
    "llama": {"rope_theta": 10000.0, "tie_word_embeddings": True},
}
"""By the name of the architecture."""


def with_defaults(config: Mapping[str, Any], architecture: str, where: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """`config` with what mlx-lm adds to it, and a note for each key; `where` begins it.

    A theta inside `rope_parameters`, which mlx-lm does not read, is left alone: engines are asked about that.
    """
    inside = config.get("rope_parameters")
    elsewhere = {"rope_theta"} if isinstance(inside, Mapping) and inside.get("rope_theta") is not None else set[str]()
    added = {
        key: value
        for key, value in DEFAULTS.get(architecture, {}).items()
        if config.get(key) is None and key not in elsewhere
    }
    notes = tuple(
        f"{where} has no {key}: it is read as {value}, which is what mlx-lm takes" for key, value in added.items()
    )
    return {**config, **added}, notes
