"""`quantkit report`: the proof of one or several artifacts as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantkit.cli.options.shared import Json
from quantkit.cli.output import Output


def report(
    artifacts: Annotated[list[Path], typer.Argument(help="Artifacts made of one original: folders, single files.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The HTML page to make.", show_default=False)],
    golden: Annotated[
        Path | None, typer.Option("--golden", help="Golden logits of the original.", show_default=False)
    ] = None,
    against: Annotated[Path | None, typer.Option("--against", help="The original model.", show_default=False)] = None,
    engine: Annotated[
        str, typer.Option("--engine", help="As for verify: auto, an engine's name, reference, or none.")
    ] = "auto",
    prompts: Annotated[
        int | None, typer.Option("--prompts", min=1, help="Only the first so many prompts.", show_default="all")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a page that lies there.")] = False,
    as_json: Json = False,
) -> None:
    """Verify artifacts, and show what was found as one HTML page that loads nothing.

    KL and the same most likely token of each prompt, the error of each layer, size against KL of several artifacts.

    Exit code 1 when one of them is not the model that it claims to be; the page is written then as well.
    """
    from quantkit import report_page

    output = Output(as_json=as_json)
    with output.progress(f"checking the files of {artifacts[0].name}") as progress:
        reports = report_page(
            artifacts,
            out,
            golden=golden,
            against=against,
            engine=engine,
            prompts=prompts,
            overwrite=overwrite,
            progress=progress,
        )
    lines = [f"{found.path}: {found.verdict} ({found.format}, {found.precision})" for found in reports]
    data = {"path": str(out), "passed": all(found.passed for found in reports)}
    output.result({**data, "reports": [found.to_json() for found in reports]}, lines=[*lines, f"{out}: the page"])
    if not data["passed"]:
        raise typer.Exit(1)
