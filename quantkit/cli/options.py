"""Options that several verbs share, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output, at the very end.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Where to write; must not exist.")]
Arch = Annotated[
    str,
    typer.Option(
        "--arch", help="native: keep the family's own architecture. llama: fold its scalars into a plain Llama."
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        "--target",
        help="Engine whose layout is meant, where a container has several (marlin: cpm.cu or ist).",
        show_default="the container's first",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", min=1, help="Worker threads; the output does not depend on it.", show_default="all cores"
    ),
]
Engine = Annotated[str, typer.Option("--engine", help="auto, or the name of an engine (see `quantkit formats`).")]
Method = Annotated[
    str | None,
    typer.Option("--method", help="rtn (round to nearest), gptq or awq (calibrated).", show_default=False),
]
Recipe = Annotated[
    Path | None,
    typer.Option("--recipe", help="TOML file of exceptions by role or name (docs/recipes.md).", show_default=False),
]
Bits = Annotated[int, typer.Option("--bits", min=2, max=8, help="Bits per code.")]
GroupSize = Annotated[int, typer.Option("--group-size", help="Input columns per scale; -1 = one scale per row.")]
Symmetric = Annotated[bool, typer.Option("--sym/--asym", help="Fixed zero point in the middle, or one per group.")]
Samples = Annotated[int, typer.Option("--samples", min=1, help="Calibration sequences.")]
Length = Annotated[int, typer.Option("--length", min=2, help="Tokens per calibration sequence.")]
