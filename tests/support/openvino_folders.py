"""Folders of OpenVINO's IR for tests: the golden model's runs, small random models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.models.checkpoint import Checkpoint
from quantkit.protocols import ExportOptions
from quantkit.tensors.schemes.affine_groups import AffineGroups
from tests.support.memory import tiny_config
from tests.support.quantized_models import quantized_model

GRIDS: Mapping[str, AffineGroups] = {
    "int4-g128-sym": AffineGroups(bits=4, group_size=128),
    "int4-g128-asym": AffineGroups(bits=4, group_size=128, symmetric=False),
    "int4-g32-sym": AffineGroups(bits=4, group_size=32),
    "int8-row-asym": AffineGroups(bits=8, group_size=-1, symmetric=False, scale_dtype="bfloat16"),
    "int2-g64-sym": AffineGroups(bits=2, group_size=64),
    "int2-g32-asym": AffineGroups(bits=2, group_size=32, symmetric=False),
    "ternary-g64": AffineGroups(bits=2, group_size=64, ternary=True),
    "int3-g64-asym": AffineGroups(bits=3, group_size=64, symmetric=False, scale_dtype="float32"),
}
SMALL = tiny_config(vocab_size=320, hidden_size=128, intermediate_size=256, num_hidden_layers=2)
"""Whose rows every grid divides."""


def exported(checkpoint: Checkpoint, path: Path, options: ExportOptions | None = None) -> Path:
    """`checkpoint` as an OpenVINO folder at `path`."""
    publish(registry.exporter("openvino").prepare(checkpoint, options or ExportOptions()), path)
    return path


def everything(grid: AffineGroups, **changes: Any) -> Checkpoint:
    """A small random model whose every matrix is on `grid`, embedding and head too."""
    return quantized_model({**SMALL, **changes}, lambda slot: grid if len(slot.shape) == 2 else None)
