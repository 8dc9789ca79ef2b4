"""What a model will be once it is quantized: shapes and grids without values, all that planning needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NoReturn

from quantkit.errors import BadOption
from quantkit.models.checkpoint import Checkpoint
from quantkit.pipeline.recipe import Assignment
from quantkit.tensors.views import QuantizedView


def planned(checkpoint: Checkpoint, assignments: Mapping[str, Assignment]) -> Checkpoint:
    """`checkpoint` as it will be once its weights are what they are assigned to be; quantized views cannot be read.

    Args:
        checkpoint: a dense model.
        assignments: by weight name, see `Recipe.assign`.

    Raises:
        BadOption: a weight that is assigned a grid is quantized already.
        UnsupportedSpec: a group size that does not divide a layer's columns, with the layer's name.
    """
    views: dict[str, QuantizedView] = {}
    for name, assignment in assignments.items():
        weight = checkpoint.weights[name]
        if assignment.scheme is None:
            continue
        if isinstance(weight, QuantizedView):
            raise BadOption(
                f"{name} is quantized already ({weight.scheme})",
                hint="quantize the original checkpoint, or export this one as it is",
            )
        rows, cols = weight.shape
        assignment.scheme.groups(cols, name=name)
        views[name] = QuantizedView(name, (rows, cols), assignment.scheme, _unreadable)
    return replace(checkpoint, weights={**checkpoint.weights, **views})


def _unreadable() -> NoReturn:
    raise RuntimeError("a planned weight has no values")
