"""`quantkit report`: the proof of one or several artifacts as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantkit.cli.options.shared import Json, Quiet
from quantkit.cli.output import Output, called, human_size, table


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
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Verify artifacts, and show what was found as one HTML page that loads nothing.

    KL and the same most likely token of each prompt, the error of each layer, size against KL of several artifacts.

    Exit code 1 when one of them is not the model that it claims to be; the page is written then as well.
    """
    from quantkit import report_page

    output = Output(as_json=as_json, quiet=quiet)
    with output.progress(f"checking the files of {called(artifacts[0])}") as progress:
        found = report_page(
            artifacts,
            out,
            golden=golden,
            against=against,
            engine=engine,
            prompts=prompts,
            overwrite=overwrite,
            progress=progress,
        )
    passed = all(one.report.passed for one in found)
    figures = ("size", "bits per weight", "KL", "top-1")
    rows = table("artifact", *figures, "engine", "", right=figures)
    for one in found:
        rows.add_row(
            one.report.path,
            human_size(one.size) if one.size is not None else "",
            f"{one.bits:.2f}" if one.bits is not None else "",
            f"{one.kl:.2e}" if one.kl is not None else "",
            f"{one.top1:.2%}" if one.top1 is not None else "",
            one.report.engine or "none",
            f"FAILED at {one.report.failed.name}" if one.report.failed is not None else "passed",
        )
    data = {
        "path": str(out),
        "passed": passed,
        "sizes": [one.size for one in found],
        "reports": [one.report.to_json() for one in found],
    }
    output.result(data, rows, lines=[f"{out}: the page"])
    if not passed:
        raise typer.Exit(1)
