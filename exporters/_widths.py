"""Codes that lie in a container in more bits than they have (`ExportOptions.bits`), and what is said of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from quantkit.errors import BadOption, UnsupportedSpec
from quantkit.exporters._hf_folder import ENDS, quantized_views
from quantkit.models.checkpoint import Checkpoint
from quantkit.protocols import ExportOptions
from quantkit.tensors.views import QuantizedView
from quantkit.tensors.widening import widened_weights


@dataclass(frozen=True, slots=True, eq=False)
class Widened:
    """model: as it is stored. changed: those of its weights that have other codes now. notes: a line for each kind."""

    model: Checkpoint
    changed: Mapping[str, QuantizedView]
    notes: tuple[str, ...]


def checked_bits(wanted: int | None, widths: Sequence[int], *, container: str) -> int | None:
    """`wanted` if it is None or one of `widths`; raises `BadOption` otherwise."""
    if wanted is None or wanted in widths:
        return wanted
    if not widths:
        raise BadOption(f"{container} has no width of codes to choose", hint="leave --bits out, and choose a type")
    listed = ", ".join(map(str, widths))
    raise BadOption(f"{container} has no codes of {wanted} bits", hint=f"widths of {container}: {listed}")


def recorded_options(options: ExportOptions) -> dict[str, Any]:
    """What the manifest of a folder of integer weights records, besides its type."""
    return {"arch": options.arch} if options.bits is None else {"arch": options.arch, "bits": options.bits}


def stored_wider(
    model: Checkpoint,
    bits: int,
    *,
    container: str,
    asked: bool = False,
    keeps_ternary: bool = False,
    linears_only: bool = False,
) -> Widened:
    """`model` with its symmetric codes in at least `bits` bits.

    Args:
        model: what is exported, in its architecture.
        bits: of the container's narrowest codes, or what the user asked for.
        container: the exporter's name.
        asked: whether the user did: then a weight that cannot have them is refused, and a wider one is told.
        keeps_ternary: whether the container knows ternary codes, of 2 bits.
        linears_only: whether embedding and head are dense there.

    Raises:
        UnsupportedSpec: codes of fewer bits that are not symmetric, if `asked`.
    """
    without = ENDS if linears_only else ()
    made = widened_weights(model.weights, bits, keeps_ternary=keeps_ternary, without=without)
    views = quantized_views(model, linears_only=linears_only)
    stored = {view.name: made[view.name] for view in views}
    changed = {
        name: weight
        for name, weight in stored.items()
        if isinstance(weight, QuantizedView) and weight is not model.weights[name]
    }
    if asked:
        _refuse_others(views, changed, bits, container)
    return Widened(replace(model, weights=made), changed, tuple(_notes(views, changed, bits, asked)))


def _refuse_others(
    views: Sequence[QuantizedView], changed: Mapping[str, QuantizedView], bits: int, container: str
) -> None:
    for view in views:
        if view.scheme.bits < bits and view.name not in changed:
            raise UnsupportedSpec(
                f"{view.name}: {container} stores symmetric codes in more bits than they have, not {view.scheme}",
                hint="leave --bits out",
            )


def _notes(
    views: Sequence[QuantizedView], changed: Mapping[str, QuantizedView], bits: int, asked: bool
) -> Iterator[str]:
    narrow = dict.fromkeys((str(view.scheme), changed[view.name].scheme.bits) for view in views if view.name in changed)
    for scheme, width in narrow:
        yield f"{scheme}: its codes are stored as {width} bits, the numbers are the same"
    wide = [view for view in views if view.scheme.bits > bits]
    if asked and wide:
        yield f"{len(wide)} weights ({wide[0].name}, {wide[0].scheme}, ...) keep the bits that they have"
