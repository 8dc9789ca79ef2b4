"""`quantkit demo`: the main job, end to end, on the bundled golden model."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from quantkit.cli.options.shared import Json, Overwrite, Quiet, Threads, named
from quantkit.cli.output import Output, human_size, table


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", callback=named, help="Folder for what the demo writes.")],
    threads: Threads = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Inspect, plan, quantize, export and verify the bundled golden model, and print one table."""
    from quantkit import QuantizeOptions, inspection, open_checkpoint
    from quantkit import plan as make_plan
    from quantkit.cli._demo_run import SCHEME, bundled_model, run_demo

    output = Output(as_json=as_json, quiet=quiet)
    model = bundled_model()
    checkpoint = open_checkpoint(model)
    facts = inspection(checkpoint).facts
    output.note(
        f"{model.parent.name}/{model.name}: {facts['architecture']}, {facts['parameters']:,} parameters, "
        f"{facts['layers']} layers, {facts['bits_per_weight']:g} bits per weight"
    )
    planned = make_plan(checkpoint, ["compressed-tensors", "gguf:q4_0"], QuantizeOptions(scheme=SCHEME))
    sizes = ", ".join(f"{target.format} {human_size(target.size or 0)}" for target in planned.targets)
    output.note(f"plan: {sizes}; peak memory about {human_size(planned.peak_memory_bytes)}")
    rows = []
    shown = table("format", "size", "bits/weight", "engine", "KL", "top-1", "verdict", right=("size", "bits/weight"))
    golden = model.parent / "golden.bin"
    with output.progress(f"reading {model.name}") as progress:
        for row in run_demo(
            model,
            golden,
            out,
            threads=threads or os.cpu_count() or 1,
            overwrite=overwrite,
            tell=output.note,
            progress=progress,
        ):
            rows.append(row)
            shown.add_row(
                row.name,
                human_size(row.size),
                f"{row.bits_per_weight:.2f}",
                row.engine,
                f"{row.kl:.1e}",
                f"{row.top1:.1%}",
                "verified" if row.passed else "FAILED",
            )
    output.result({"rows": [asdict(row) for row in rows]}, shown)
    if not all(row.passed for row in rows):
        raise typer.Exit(1)
