"""`quantkit inspect`: what a checkpoint or artifact is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantkit.cli.options.shared import Json
from quantkit.cli.output import Output, human_size, table


def inspect(
    path: Annotated[Path, typer.Argument(help="A model folder, a quantized folder, or a single-file artifact.")],
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    card: Annotated[
        bool, typer.Option("--card", help="Print its model card instead, as it lies in folders: README.md.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what a model is: family, shapes, types, quantization, bits per weight.

    Reads headers, the first rows of linear weights, and all of them where they are ternary.
    """
    from quantkit import inspection, leftovers, model_card, open_checkpoint

    output = Output(as_json=as_json)
    if card:
        text = model_card(path)
        output.result({"card": text}, lines=text.splitlines())
        return
    checkpoint = open_checkpoint(path)
    with output.progress(f"reading {path.name}") as progress:
        found = inspection(checkpoint, progress=progress)
    summary = table("", "")
    for key, value in found.facts.items():
        summary.add_row(key, str(value))
    kinds = table("type", "tensors", "weights", "size", right=("tensors", "weights", "size"))
    for kind in found.kinds:
        kinds.add_row(kind.type, str(kind.tensors), f"{kind.weights:,}", human_size(kind.nbytes))
    listing = table("tensor", "type", "shape")
    for tensor in found.tensors if tensors else ():
        listing.add_row(tensor.name, tensor.type, " x ".join(map(str, tensor.shape)))
    shown = [summary, kinds, listing] if tensors else [summary, kinds]
    output.result({**found.to_json(), "notes": [*checkpoint.notes, *found.notes]}, *shown)
    output.notes((*checkpoint.notes, *found.notes))
    output.notes(leftovers(path.absolute().parent))
