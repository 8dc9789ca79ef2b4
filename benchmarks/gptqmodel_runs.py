"""GPTQModel beside ours: the options that are compared, and how it is run in an environment of its own.

It cannot read a MiniCPM without the model's own Python code, so it gets the folded Llama, in float32.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.models.checkpoint import Checkpoint
from quantkit.protocols import ExportOptions

SCRIPT = Path(__file__).with_name("gptqmodel_quantize.py")

DEFAULT = "gptqmodel: default (GAR)"
"""7.7 by itself: desc_act off, act_group_aware on, damping 0.05, no search of scales."""

OPTIONS: Mapping[str, Mapping[str, Any]] = {
    DEFAULT: {},
    "gptqmodel: plain": {"desc_act": False, "act_group_aware": False},
    "gptqmodel: act-order": {"desc_act": True, "act_group_aware": False},
    "gptqmodel: GAR + mse": {"mse": 2.4},
    "gptqmodel: act-order + mse": {"desc_act": True, "act_group_aware": False, "mse": 2.4},
    # Its solver of GPTAQ knows desc_act only and leaves act_group_aware unread.
    "gptqmodel: GPTAQ": {"gptaq": {}, "desc_act": False, "act_group_aware": False},
    "gptqmodel: GPTAQ + act-order": {"gptaq": {}, "desc_act": True, "act_group_aware": False},
    "gptqmodel: FOEM": {"foem": {}, "desc_act": False, "act_group_aware": False},
    "gptqmodel: GPTAQ + mse": {"gptaq": {}, "desc_act": False, "act_group_aware": False, "mse": 2.4},
}
"""What its `QuantizeConfig` is given beside bits, group_size and sym, by row."""


def write_folded(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the model as a float32 Llama."""
    publish(registry.exporter("hf").prepare(checkpoint, ExportOptions(type="f32", arch="llama")), folder)


def write_tokens(sequences: Sequence[np.ndarray], file: Path) -> None:
    """Write calibration sequences for `command`."""
    file.write_text(json.dumps([row.tolist() for row in sequences]))


def command(
    python: Path, folded: Path, tokens: Path, out: Path, *, bits: int, group_size: int, options: Mapping[str, Any]
) -> list[str | Path]:
    """What quantizes the model in `folded` on the sequences in `tokens`, symmetric, and writes `out`.

    Isolated: neither the script's folder nor PYTHONPATH may hide modules of that environment.
    """
    settings = json.dumps({"bits": bits, "group_size": group_size, "sym": True, **options})
    return [python, "-I", SCRIPT, folded, tokens, out, settings]


def used_settings(out: Path) -> dict[str, Any]:
    """What GPTQModel says it has done, from the `quantize_config.json` that it wrote."""
    written = json.loads((out / "quantize_config.json").read_text())
    found = {**written.get("meta", {}), **written}
    return {
        key: found.get(key)
        for key in ("desc_act", "act_group_aware", "static_groups", "damp_percent", "mse", "gptaq", "foem")
    }
