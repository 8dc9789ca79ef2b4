"""`quantkit verify`: the proof that an artifact still is the model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantkit.cli.completion import plugins
from quantkit.cli.options.shared import Attention, Json, Quiet, Variant
from quantkit.cli.output import Output, called


def verify(
    artifact: Annotated[Path, typer.Argument(help="A model folder, a quantized folder, or a single-file artifact.")],
    golden: Annotated[
        Path | None, typer.Option("--golden", help="Golden logits of the original.", show_default=False)
    ] = None,
    against: Annotated[Path | None, typer.Option("--against", help="The original model.", show_default=False)] = None,
    engine: Annotated[
        str,
        typer.Option(
            "--engine",
            autocompletion=plugins("runtimes", "auto", "none"),
            help="auto, an engine's name (see `quantkit formats`), reference for no other, none to run nothing.",
        ),
    ] = "auto",
    max_kl: Annotated[
        float | None,
        typer.Option(
            "--max-kl",
            min=0.0,
            help="Largest mean KL from the original, in nats, beside the limits that follow from the artifact.",
            show_default=False,
        ),
    ] = None,
    prompts: Annotated[
        int | None, typer.Option("--prompts", min=1, help="Only the first so many prompts.", show_default="all")
    ] = None,
    needs_manifest: Annotated[
        bool, typer.Option("--manifest/--no-manifest", help="Whether an artifact without a manifest fails.")
    ] = True,
    attention: Attention = None,
    variant: Variant = None,
    context: Annotated[
        int, typer.Option("--context", min=1, help="Sparse attention: tokens in which needles are hidden.")
    ] = 32768,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Check files, identity and numbers, then compare predictions of the numpy reference and of a real engine.

    With --attention sparse: predictions and chosen blocks on a long prompt, and needles hidden in a long context.

    Exit code 1 when the artifact is not the model that it claims to be.
    """
    from quantkit import verify as make_report

    output = Output(as_json=as_json, quiet=quiet)
    with output.progress(f"checking the files of {called(artifact)}") as progress:
        report = make_report(
            artifact,
            golden=golden,
            against=against,
            engine=engine,
            max_kl=max_kl,
            prompts=prompts,
            needs_manifest=needs_manifest,
            attention=attention,
            variant=variant,
            context=context,
            progress=progress,
        )
    output.result(report.to_json(), lines=report.lines())
    if not report.passed:
        raise typer.Exit(1)
