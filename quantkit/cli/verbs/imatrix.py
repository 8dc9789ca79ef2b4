"""`quantkit imatrix`: how much every column of a model's matrices counts, in llama.cpp's format."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from quantkit.cli.options.shared import Json, Out, Overwrite, Quiet, Threads
from quantkit.cli.output import Output, called, human_size


def imatrix(
    model: Annotated[Path, typer.Argument(help="A model: a folder, or any artifact whose weights can be read.")],
    text: Annotated[Path, typer.Option("--text", metavar="FILE", help="Text to measure on: .txt, .jsonl or .parquet.")],
    out: Out,
    length: Annotated[int, typer.Option("--length", min=2, help="Tokens of a chunk; llama.cpp has 512, too.")] = 512,
    chunks: Annotated[
        int | None,
        typer.Option("--chunks", min=1, help="At most so many chunks, the first ones.", show_default="all of the text"),
    ] = None,
    process_output: Annotated[
        bool,
        typer.Option("--process-output", help="Measure the head (output.weight) as well, where it is no embedding."),
    ] = False,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    bfloat16: Annotated[
        bool | None,
        typer.Option(
            "--bfloat16/--no-bfloat16",
            help="Precision of the forwards. Default: bfloat16 where the CPU has instructions for it.",
            show_default=False,
        ),
    ] = None,
    threads: Threads = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure how large the inputs of every linear layer are on a text, column by column, and write llama.cpp's GGUF
    importance matrix of them: `export gguf --imatrix` reads it, and so does llama-quantize.
    """
    from quantkit import Compute, measure_importance, open_checkpoint

    output = Output(as_json=as_json, quiet=quiet)
    checkpoint = open_checkpoint(model)
    output.notes(checkpoint.notes)
    with output.progress(f"reading {called(text)}") as progress:
        done = measure_importance(
            checkpoint,
            text,
            out,
            length=length,
            chunks=chunks,
            process_output=process_output,
            compute=Compute(threads=threads or os.cpu_count() or 1, device=device, bfloat16=bfloat16),
            overwrite=overwrite,
            progress=progress,
        )
    output.notes(note for note in done.manifest["notes"] if note not in checkpoint.notes)
    output.notes(done.leftovers)
    options, matrices = done.manifest["options"], len(done.manifest["tensors"]) // 2
    output.result(
        {"path": str(out), "size": done.size, "matrices": matrices, "options": options},
        lines=[
            f"{out}: {human_size(done.size)}, the inputs of {matrices} matrices on {options['chunks']} chunks of "
            f"{options['chunk_length']} tokens of {options['text']}"
        ],
    )
