"""`quantkit export`: one container from any readable model."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from quantkit.cli.completion import in_lower_case, plugins
from quantkit.cli.options.shared import Arch, Json, Out, Overwrite, Quiet, Target, Threads
from quantkit.cli.output import Output, called, human_size

CALIBRATED = "calibrated"
"""The algorithm that is a run of its own."""


def export(
    format: Annotated[  # noqa: A002
        str,
        typer.Argument(
            metavar="FORMAT", autocompletion=plugins("exporters"), help="hf, gguf, ... (see `quantkit formats`)."
        ),
    ],
    source: Annotated[Path, typer.Argument(help="A model folder, a quantized folder, or a single-file artifact.")],
    out: Out,
    type: Annotated[  # noqa: A002 - the option's name
        str | None, typer.Option("--type", help="Element type, such as bf16 or q4_0.", show_default="chosen by source")
    ] = None,
    arch: Arch = "native",
    target: Target = None,
    bits: Annotated[
        int | None,
        typer.Option(
            "--bits",
            help="Store narrower symmetric codes, ternary ones too, in so many bits; for engines that take no others.",
            show_default="the codes' own",
        ),
    ] = None,
    ops: Annotated[
        str | None,
        typer.Option(
            "--ops",
            callback=in_lower_case,
            help="onnx: contrib, the engine's own operators, or standard, those of ONNX alone.",
            show_default="contrib",
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            "--context",
            min=1,
            help="onnx: the longest context that the graph is made for.",
            show_default="the model's",
        ),
    ] = None,
    attention: Annotated[
        str,
        typer.Option(
            "--attention",
            callback=in_lower_case,
            metavar="[dense|sparse]",
            help="onnx: to all tokens, or to blocks of them as the model's sparse_config says.",
        ),
    ] = "dense",
    algorithm: Annotated[
        str | None,
        typer.Option(
            "--algorithm",
            callback=in_lower_case,
            help="gguf: how dense weights are quantized. reference: as llama.cpp does it, types of tensors and bytes; "
            "calibrated: by quantkit's solver, in the same types.",
            show_default="reference for types with K and IQ4",
        ),
    ] = None,
    calibration: Annotated[
        list[str] | None,
        typer.Option(
            "--calibration",
            metavar="FILE[:WEIGHT]",
            help="calibrated: text to calibrate on beside what the model writes itself; may be given again.",
            show_default="own text alone",
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option("--samples", min=1, help="calibrated: sequences to calibrate on.", show_default="128"),
    ] = None,
    tensor_types: Annotated[
        list[str] | None,
        typer.Option(
            "--tensor-type",
            metavar="PATTERN=TYPE",
            help="gguf: type of the tensors whose names have a match, such as ffn_down=q6_k; may be given again.",
        ),
    ] = None,
    output_type: Annotated[
        str | None,
        typer.Option("--output-type", help="gguf: type of the head (output.weight).", show_default="a rule's"),
    ] = None,
    embedding_type: Annotated[
        str | None,
        typer.Option("--token-embedding-type", help="gguf: type of the embedding.", show_default="a rule's"),
    ] = None,
    pure: Annotated[
        bool, typer.Option("--pure", help="gguf: every matrix gets the same type, none more bits than others.")
    ] = False,
    threads: Threads = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write SOURCE as FORMAT. Quantized weights are carried code for code, or refused; never quantized twice."""
    from quantkit import (
        BlockOptions,
        CalibrationFile,
        CalibrationOptions,
        Compute,
        ExportOptions,
        QuantizeOptions,
        loads_in,
        names,
        open_checkpoint,
        parse_target,
    )
    from quantkit import export as write
    from quantkit import export_calibrated as solve
    from quantkit.errors import BadOption

    if str(source) in names("exporters") and format not in names("exporters"):
        raise BadOption(f"{format[:80]!r} is no format", hint=f"the format goes first: export {source} {format}")
    if (calibration or samples is not None) and algorithm != CALIBRATED:
        option = "--calibration" if calibration else "--samples"
        raise BadOption(f"{option} is for --algorithm calibrated", hint="add it; llama.cpp's own way takes no text")
    output = Output(as_json=as_json, quiet=quiet)
    blocks = BlockOptions(
        algorithm=algorithm,
        tensor_types=tuple(tensor_types or ()),
        output_type=output_type,
        embedding_type=embedding_type,
        pure=pure,
    )
    name, options = parse_target(
        f"{format}:{type}" if type else format,
        ExportOptions(
            arch=arch,
            target=target,
            bits=bits,
            ops=ops,
            context=context,
            attention=attention,
            blocks=blocks,
            threads=threads or os.cpu_count() or 1,
        ),
    )
    checkpoint = open_checkpoint(source)
    output.notes(checkpoint.notes)
    with output.progress(f"reading {called(source)}") as progress:
        if algorithm == CALIBRATED:
            text = CalibrationOptions(files=tuple(map(CalibrationFile.parse, calibration or ())))
            if samples is not None:
                text = replace(text, sequences=samples)
            done = solve(
                name,
                checkpoint,
                out,
                options,
                QuantizeOptions(calibration=text),
                compute=Compute(threads=options.threads),
                overwrite=overwrite,
                progress=progress,
            )
        else:
            done = write(name, checkpoint, out, options, overwrite=overwrite, progress=progress)
    output.notes(note for note in done.manifest["notes"] if note not in checkpoint.notes)
    output.notes(done.leftovers)
    moved = done.manifest["figures"].get("largest_move_in_steps", {})
    if moved:
        worst, steps = max(moved.items(), key=lambda item: float(item[1]))
        output.note(
            f"note: minimums are rounded to float16: weights of {len(moved)} tensors move by at most {steps:.2g} "
            f"steps ({worst})"
        )
    rounded = done.manifest["figures"].get("largest_rounding", {})
    if rounded:
        worst, share = max(rounded.items(), key=lambda item: float(item[1]))
        output.note(
            f"note: {len(rounded)} quantized weights are rounded to {done.manifest['options']['type']}, a value by at "
            f"most {share:.2g} of itself ({worst})"
        )
    loading = loads_in(done.path, target=options.target)
    weights = sum(weight.size for weight in checkpoint.weights.values())
    output.result(
        {
            "path": str(out),
            "format": name,
            "size": done.size,
            "bits_per_weight": done.size * 8 / weights,
            "options": done.manifest["options"],
            "loads_in": loading,
            "notes": done.manifest["notes"],
            "figures": done.manifest["figures"],
        },
        lines=[
            f"{out}: {human_size(done.size)}, {done.size * 8 / weights:.2f} bits per weight, re-read and hashed",
            loading,
        ],
    )
