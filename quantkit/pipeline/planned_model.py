"""What a model will be once it is quantized: shapes and grids without values, all that planning needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NoReturn

from quantkit import registry
from quantkit.errors import BadOption, UnsupportedSpec
from quantkit.models.checkpoint import Checkpoint
from quantkit.pipeline.options import QuantizeOptions
from quantkit.pipeline.recipe import ROLES, Assignment
from quantkit.pipeline.ternary_import import TakenOver, taken_over
from quantkit.progress import Progress
from quantkit.protocols import Method
from quantkit.tensors.scheme import Scheme
from quantkit.tensors.views import QuantizedView


@dataclass(frozen=True, slots=True)
class Decisions:
    """What a run does with a model.

    method, scheme: the usual ones. weights: what every one becomes, and what to tell of it.
    """

    method: Method
    scheme: Scheme
    weights: TakenOver

    @property
    def methods(self) -> dict[str, Method]:
        """The method of every weight that is quantized, by its name."""
        return {
            name: self.method if one.method == self.method.name else registry.method(one.method)
            for name, one in self.weights.assignments.items()
            if one.scheme is not None
        }


def decided(
    checkpoint: Checkpoint, options: QuantizeOptions, *, threads: int = 1, progress: Progress | None = None
) -> Decisions:
    """Decide what every linear weight of a model becomes.

    Weights are read only by methods that take over what they find, see `quantkit.protocols.Method.takes_over`.

    Raises:
        BadOption: an unknown method, a recipe that does not fit the model, or more levels than the method has.
        UnsupportedSpec: groups that do not divide a weight's columns; see also `taken_over`.
    """
    method = registry.method(options.method) if isinstance(options.method, str) else options.method
    scheme = options.scheme or method.default_scheme
    if method.takes_over and scheme.bits != method.default_scheme.bits:
        raise BadOption(
            f"{method.name} has codes of {method.default_scheme.bits} bits, not {scheme.bits}", hint="--method gptq has"
        )
    if options.schemes:
        named = {
            slot.name: Assignment(options.schemes.get(slot.name), method.name)
            for slot in checkpoint.spec.slots()
            if slot.role in ROLES
        }
        return Decisions(method, scheme, TakenOver(named))
    assignments = options.recipe.assign(checkpoint.spec, scheme, method.name)
    if not method.takes_over or checkpoint.holds_codes:
        return Decisions(method, scheme, TakenOver(assignments))
    found = taken_over(checkpoint, assignments, strict=options.strict, threads=threads, progress=progress)
    return Decisions(method, scheme, found)


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
        views[name] = QuantizedView(name, (rows, cols), assignment.scheme, _unreadable(name))
    return replace(checkpoint, weights={**checkpoint.weights, **views})


def _unreadable(name: str) -> Callable[[], NoReturn]:
    """Containers that hold some weights of a scheme and not others cannot be planned yet."""

    def read() -> NoReturn:
        raise UnsupportedSpec(
            f"{name}: whether the container holds it is known from its numbers, once it is quantized",
            hint="quantize first, and plan the result",
        )

    return read
