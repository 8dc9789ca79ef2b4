"""`quantkit eval`: what artifacts lost on a text, beside the model that they were made from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantkit.cli.options.shared import Engine, Json, Quiet
from quantkit.cli.output import Output, called, table


def evaluate(
    artifacts: Annotated[
        list[Path], typer.Argument(help="Model folders, quantized folders, or single-file artifacts of one model.")
    ],
    text: Annotated[Path, typer.Option("--text", help="Text to predict: .txt, .jsonl or .parquet.")],
    against: Annotated[Path, typer.Option("--against", help="The model that they were made from.")],
    engine: Engine = "reference",
    samples: Annotated[
        int, typer.Option("--samples", min=1, help="Windows of text, evenly spread over the file.")
    ] = 16,
    length: Annotated[int, typer.Option("--length", min=2, help="Tokens per window, BOS included.")] = 512,
    skip_positions: Annotated[
        int,
        typer.Option(
            "--skip-positions",
            min=0,
            help="Predictions at the start of every window that are not counted; half of --length is as llama.cpp's "
            "own tool counts.",
        ),
    ] = 0,
    noise_floor: Annotated[
        bool,
        typer.Option(
            "--noise-floor/--no-noise-floor",
            help="Run artifacts in the reference as well: what of the figures is the engine's arithmetic.",
        ),
    ] = True,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw KL against bytes as this PNG file.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing picture.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure what artifacts lost on a text: perplexity, KL from the source in nats, and how often the most likely
    token, and the five most likely ones, are the same; with standard errors over windows.

    The source is computed once, by the numpy reference; artifacts by the engine. The noise floor is the KL of the
    engine from the reference on the same artifact: a KL not well above it is the engine's and not the artifact's.
    """
    from quantkit import evaluate as measure

    output = Output(as_json=as_json, quiet=quiet)
    with output.progress(f"reading {called(text)}") as progress:
        found = measure(
            artifacts,
            against=against,
            text=text,
            engine=engine,
            sequences=samples,
            length=length,
            skip_positions=skip_positions,
            noise_floor=noise_floor,
            plot=plot,
            overwrite=overwrite,
            progress=progress,
        )
    output.notes(found.notes)
    tables = []
    for heads, *rows in found.tables():
        tables.append(table(*heads, right=[head for head in heads[1:] if head != "engine"]))
        for row in rows:
            tables[-1].add_row(*row)
    output.result(
        {**found.to_json(), "plot": str(plot) if plot is not None else None}, *tables, lines=[found.counted()]
    )
    if plot is not None:
        output.note(f"KL against bytes: {plot}")
