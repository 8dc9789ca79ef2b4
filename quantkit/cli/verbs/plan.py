"""`quantkit plan`: sizes, memory, time and refusals, before any work."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantkit.cli.options import sizes
from quantkit.cli.options.shared import (
    Arch,
    Bits,
    EmbeddingBits,
    GroupSize,
    Json,
    Length,
    Levels,
    Method,
    Quiet,
    Recipe,
    Samples,
    Strict,
    Symmetric,
    Target,
    TargetBits,
    TargetBytes,
    Threads,
    chosen_recipe,
    chosen_scheme,
)
from quantkit.cli.output import Output, human_size, human_time, table

if TYPE_CHECKING:
    from quantkit import Target as PlannedTarget

ALL = "all"
"""Every container, in every type."""


def plan(
    source: Annotated[Path, typer.Argument(help="A model folder, a quantized folder, or a single-file artifact.")],
    to: Annotated[
        str, typer.Option("--to", help="Containers, FORMAT, FORMAT:TYPE or FORMAT:TYPE:BITS, with commas; or all.")
    ],
    method: Method = None,
    bits: Bits = None,
    group_size: GroupSize = None,
    symmetric: Symmetric = None,
    levels: Levels = None,
    strict: Strict = False,
    recipe: Recipe = None,
    embedding_bits: EmbeddingBits = None,
    samples: Samples = 128,
    length: Length = 512,
    arch: Arch = "native",
    target: Target = None,
    target_bits: TargetBits = None,
    target_size: TargetBytes = None,
    threads: Threads = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="List what every tensor becomes.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Show exact sizes, peak memory, time and engines of what would be written, and write nothing.

    Reads headers only; for method ternary also the weights, because what is ternary already is taken over.
    """
    from quantkit import (
        CalibrationOptions,
        ExportOptions,
        QuantizeOptions,
        every_target,
        parse_target,
        reachable_sizes,
    )
    from quantkit import plan as make_plan
    from quantkit.errors import BadOption

    if (recipe is not None or embedding_bits is not None) and method is None:
        option = "--recipe" if recipe is not None else "--embedding-bits"
        raise BadOption(f"{option} is an exception to --method, which is missing", hint="add --method gptq")
    output = Output(as_json=as_json, quiet=quiet)
    options = None
    if method is not None:
        options = QuantizeOptions(
            method=method,
            scheme=chosen_scheme(method, bits=bits, group_size=group_size, symmetric=symmetric, levels=levels),
            recipe=chosen_recipe(recipe, embedding_bits),
            calibration=CalibrationOptions(sequences=samples, length=length),
            strict=strict,
        )
    wanted = every_target() if to.lower() == ALL else to.split(",")
    targets = [parse_target(item, ExportOptions(arch=arch, target=target)) for item in wanted]
    made = make_plan(source, targets, options, threads=threads or os.cpu_count() or 1)
    size = sizes.target_size(target_size, target_bits)
    reached = {
        container: reachable_sizes(container, source, replace(chosen, type=None), options)
        for container, chosen in (targets if size is not None else ())
    }
    budget = size.budget(made.parameters) if size is not None else 0
    rows = table("format", "type", "size", "bits/weight", "time", "", right=("size", "bits/weight", "time"))
    for container in made.targets:
        rows.add_row(
            container.format,
            container.type if container.bits is None else f"{container.type} in {container.bits} bits",
            human_size(container.size) if container.size is not None else "-",
            f"{container.bits_per_weight:.2f}" if container.bits_per_weight is not None else "-",
            human_time(container.seconds) if container.seconds is not None else "-",
            "refused" if container.refusal else "",
        )
    listing = table("tensor", "shape", "becomes", "by")
    for weight in made.weights:
        listing.add_row(weight.name, " x ".join(map(str, weight.shape)), weight.type, weight.method or "")
    names = _names(made.targets)
    every = list(zip(names, made.targets, strict=True))
    told = _grouped((name, fact) for name, container in every for fact in _loading(container))
    refusals = _grouped((name, fact) for name, container in every for fact in _refusal(container))
    counts = ", ".join(f"{count} x {kind}" for kind, count in made.tensors.items())
    mixtures = {name: {"smallest": least, "largest": most} for name, (least, most) in reached.items()}
    output.result(
        {**made.to_json(), "mixtures": mixtures},
        *([listing] if tensors else []),
        rows,
        *refusals,
        lines=[
            f"{made.source}: {made.parameters:,} parameters; {counts}",
            *([f"quantizing: {human_time(made.seconds)}, {made.threads} threads"] if made.method is not None else []),
            f"peak memory about {human_size(made.peak_memory_bytes)}, disk {human_size(made.disk_bytes)}",
            *(f"{name.replace('_', ' ')}: {fact}" for name, fact in made.sparse_attention.items()),
            *told,
            *(
                f"{name}: mixtures of types have {least:,} to {most:,} bytes, {least * 8 / made.parameters:.3f} to "
                f"{most * 8 / made.parameters:.3f} bits per weight: {budget:,} bytes "
                f"{'are enough' if least <= budget else 'are too few'}"
                for name, (least, most) in reached.items()
            ),
            *(
                f"{one.engine}: smallest {one.smallest}, fastest {one.fastest}"
                for one in (made.best if len(made.targets) > 1 else ())
            ),
        ],
    )
    shared = _shared_notes(made.targets)
    output.notes(shared)
    output.notes(_grouped((name, f": {note}") for name, one in every for note in one.notes if note not in shared))
    if (not made.possible and to.lower() != ALL) or any(least > budget for least, _ in reached.values()):
        raise typer.Exit(2)


def _shared_notes(targets: Sequence[PlannedTarget]) -> list[str]:
    """What is to be told of every container that can be written, once."""
    written = [target for target in targets if target.size is not None]
    return [note for note in (written[0].notes if written else ()) if all(note in one.notes for one in written)]


def _names(targets: Sequence[PlannedTarget]) -> list[str]:
    """What to call each: by its format, with its type where there are several of that format."""
    counts = Counter(target.format for target in targets)
    return [target.label if counts[target.format] > 1 else target.format for target in targets]


def _grouped(facts: Iterable[tuple[str, str]]) -> list[str]:
    """Facts about containers, by their names: what is true of several is said once."""
    names: dict[str, list[str]] = {}
    for name, fact in facts:
        names.setdefault(fact, []).append(name)
    return [f"{', '.join(of)}{fact}" for fact, of in names.items()]


def _refusal(container: PlannedTarget) -> Iterator[str]:
    """Why a container cannot hold the result, and what would help."""
    if container.refusal is not None:
        yield f": refused: {container.refusal}" + (f" (hint: {container.hint})" if container.hint else "")


def _loading(container: PlannedTarget) -> Iterator[str]:
    """What loads one container, and why a kernel does not, or at what cost it does."""
    if container.loads_in is not None:
        yield f" {container.loads_in}"
    if container.attention is not None:
        yield f": {container.attention}"
    for verdict in container.kernels:
        if verdict.refusal is not None and verdict.mend is None:
            yield f": {verdict.kernel} refuses: {verdict.refusal}"
        elif verdict.remark is not None:
            yield f": {verdict.kernel} takes it, but {verdict.remark}"
