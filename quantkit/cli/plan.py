"""`quantkit plan`: sizes, memory, time and refusals, before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantkit.cli.options import Arch, Bits, GroupSize, Json, Length, Method, Samples, Symmetric
from quantkit.cli.output import Output, human_size, table


def plan(
    source: Annotated[Path, typer.Argument(help="A model folder, a quantized folder, or a single-file artifact.")],
    to: Annotated[str, typer.Option("--to", help="Containers, FORMAT or FORMAT:TYPE, separated by commas.")],
    method: Method = None,
    bits: Bits = 4,
    group_size: GroupSize = 128,
    symmetric: Symmetric = True,
    samples: Samples = 32,
    length: Length = 512,
    arch: Arch = "native",
    as_json: Json = False,
) -> None:
    """Show exact sizes, peak memory, time and engines of what would be written; reads headers only, writes nothing."""
    from quantkit.plan import parse_target
    from quantkit.plan import plan as make_plan
    from quantkit.registry import open_checkpoint
    from quantkit.spec import QuantSpec

    output = Output(as_json=as_json)
    made = make_plan(
        open_checkpoint(source),
        [parse_target(item, arch=arch) for item in to.split(",")],
        method=method,
        spec=QuantSpec(bits=bits, group_size=group_size, symmetric=symmetric) if method else None,
        calibration_tokens=samples * length,
    )
    rows = table("format", "type", "size", "bits/weight", "engines", "", right=("size", "bits/weight"))
    for target in made.targets:
        rows.add_row(
            target.format,
            target.type,
            human_size(target.size) if target.size is not None else "-",
            f"{target.bits_per_weight:.2f}" if target.bits_per_weight is not None else "-",
            ", ".join(target.engines),
            f"refused: {target.refusal}" if target.refusal else "",
        )
    tensors = ", ".join(f"{count} x {kind}" for kind, count in made.tensors.items())
    output.result(
        made.to_json(),
        rows,
        lines=[
            f"{made.source}: {made.parameters:,} parameters; {tensors}",
            f"peak memory about {human_size(made.peak_memory_bytes)}, about {made.seconds:.0f} s, "
            f"disk {human_size(made.disk_bytes)}",
        ],
    )
    for target in made.targets:
        for note in target.notes:
            output.note(f"{target.format}: {note}")
        if target.hint:
            output.note(f"{target.format}: hint: {target.hint}")
    if not made.possible:
        raise typer.Exit(2)
