"""`quantkit inspect`: what a checkpoint or artifact is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantkit.cli.layers import calibration_lines, error_line, error_table, summary
from quantkit.cli.options.shared import Json, Quiet, Tensors
from quantkit.cli.output import Output, called, human_size, table

if TYPE_CHECKING:
    from quantkit import Provenance
    from quantkit.cli.tables import Table


def inspect(
    path: Annotated[Path, typer.Argument(help="A model folder, a quantized folder, or a single-file artifact.")],
    tensors: Tensors = False,
    card: Annotated[
        bool, typer.Option("--card", help="Print its model card instead, as it lies in folders: README.md.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Show what a model is: family, shapes, types, quantization, bits per weight; and how quantkit made it, if it did.

    Reads headers, the first rows of linear weights, and all of them where they are ternary.
    """
    from quantkit import inspection, leftovers, model_card, open_checkpoint, provenance

    output = Output(as_json=as_json, quiet=quiet)
    if card:
        text = model_card(path)
        output.result({"card": text}, lines=text.splitlines())
        return
    checkpoint = open_checkpoint(path)
    with output.progress(f"reading {called(path)}") as progress:
        found = inspection(checkpoint, progress=progress)
    made = provenance(path)
    errors = made.errors if made is not None else {}
    facts = table("", "")
    for key, value in found.facts.items():
        facts.add_row(key.replace("_", " "), _in_words(value))
    kinds = table("type", "tensors", "weights", "size", right=("tensors", "weights", "size"))
    for kind in found.kinds:
        kinds.add_row(kind.type, str(kind.tensors), f"{kind.weights:,}", human_size(kind.nbytes))
    shown: list[Table | str] = [facts, kinds]
    if made is not None:
        shown += _making(made, tensors)
        shown += [error_table(errors, made.fallbacks, every=tensors)] if errors else []
    if tensors:
        listing = table("tensor", "type", "shape")
        for tensor in found.tensors:
            listing.add_row(tensor.name, tensor.type, " x ".join(map(str, tensor.shape)))
        shown.append(listing)
    output.result(
        {
            **found.to_json(),
            "made": None if made is None else {**made.to_json(), "summary": summary(errors)},
            "notes": [*checkpoint.notes, *found.notes],
        },
        *shown,
    )
    output.notes((*checkpoint.notes, *found.notes))
    output.notes(leftovers(path.absolute().parent))


def _in_words(value: object) -> str:
    """A fact as people read it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def _making(made: Provenance, every: bool) -> Iterator[str]:
    """How the artifact was made."""
    how = "" if made.method is None else f" by {made.method}"
    options = ", ".join(f"{name} {value}" for name, value in made.options.items())
    yield f"made{how} with quantkit {made.version} ({options})"
    yield from calibration_lines(made.calibration)
    if made.errors:
        yield error_line(made.errors, every=every)
