"""`quantkit golden`: record what the original model predicts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantkit.cli.completion import in_lower_case
from quantkit.cli.options.shared import Json, Out, Overwrite, Quiet, Variant
from quantkit.cli.output import Output, called, human_size, table


def golden(
    model: Annotated[Path, typer.Argument(help="The original model.")],
    out: Out,
    quantized: Annotated[
        bool,
        typer.Option("--quantized", help="Take a quantized model for the original, where nobody has another."),
    ] = False,
    attention: Annotated[
        str,
        typer.Option(
            "--attention",
            callback=in_lower_case,
            help="sparse: record as well what sparse attention does on a long prompt.",
        ),
    ] = "dense",
    variant: Variant = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Record what the original model is and predicts, for `verify --golden`: its scalars, tokenizer, digests and
    sketches of its weights, float32 logits of the bundled prompts, and what rounding costs it.
    """
    from quantkit import open_checkpoint, record_golden

    output = Output(as_json=as_json, quiet=quiet)
    checkpoint = open_checkpoint(model)
    output.notes(checkpoint.notes)
    with output.progress(f"reading {called(model)}") as progress:
        done = record_golden(
            checkpoint,
            out,
            quantized=quantized,
            attention=attention,
            variant=variant,
            overwrite=overwrite,
            progress=progress,
        )
    output.notes(note for note in done.manifest["notes"] if note not in checkpoint.notes)
    output.notes(done.leftovers)
    prompts = {prompt["name"]: prompt["shape"][0] for prompt in done.manifest["tensors"]}
    rows = table("prompt", "tokens", right=("tokens",))
    for name, tokens in prompts.items():
        rows.add_row(name, str(tokens))
    output.result(
        {"path": str(out), "size": done.size, "prompts": prompts},
        rows,
        lines=[f"{out}: {human_size(done.size)}, {called(model)} on {len(prompts)} prompts"],
    )
