"""`quantkit export`: one container from any readable model."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from quantkit.cli.completion import in_lower_case, plugins
from quantkit.cli.options import sizes
from quantkit.cli.options.shared import (
    Arch,
    Json,
    Out,
    Overwrite,
    Quiet,
    Target,
    TargetBits,
    TargetBytes,
    Threads,
    mixture_lines,
)
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
            help="gguf: how dense weights are quantized. searched: in llama.cpp's types, but nearer to the model, by "
            "weights alone; reference: as llama.cpp does it, types of tensors and bytes; calibrated: by quantkit's "
            "solver, in the same types.",
            show_default="searched for types with K, IQ4 and MXFP4",
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
    like: Annotated[
        Path | None,
        typer.Option(
            "--like",
            metavar="FILE",
            help="gguf: every tensor gets the type that it has in this GGUF file of the same model, whoever made it.",
        ),
    ] = None,
    imatrix: Annotated[
        Path | None,
        typer.Option(
            "--imatrix",
            metavar="FILE",
            help="gguf: what columns count, by an importance matrix of ours or llama.cpp's (GGUF or .dat).",
            show_default=False,
        ),
    ] = None,
    split_max_size: Annotated[
        str | None,
        typer.Option(
            "--split-max-size",
            metavar="SIZE",
            help="gguf: the largest size of a file, such as 300MB or 2G. OUT becomes a folder with the parts, named as "
            "llama.cpp names them.",
            show_default="one file",
        ),
    ] = None,
    target_bits: TargetBits = None,
    target_size: TargetBytes = None,
    candidates: Annotated[
        list[str] | None,
        typer.Option(
            "--candidate",
            metavar="TYPE",
            help="gguf: a type that --target-bpw and --target-size may choose; may be given again.",
            show_default="all",
        ),
    ] = None,
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
        export_to_size,
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
    size = sizes.target_size(target_size, target_bits)
    if candidates and size is None:
        raise BadOption("--candidate is for --target-bpw and --target-size", hint="add one of them")
    if (calibration or samples is not None) and algorithm != CALIBRATED and size is None:
        option = "--calibration" if calibration else "--samples"
        raise BadOption(f"{option} is for --algorithm calibrated", hint="add it; llama.cpp's own way takes no text")
    output = Output(as_json=as_json, quiet=quiet)
    blocks = BlockOptions(
        algorithm=algorithm,
        tensor_types=tuple(tensor_types or ()),
        output_type=output_type,
        embedding_type=embedding_type,
        pure=pure,
        like=like,
        imatrix=imatrix,
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
            split_bytes=_split_bytes(split_max_size, out),
            threads=threads or os.cpu_count() or 1,
        ),
    )
    checkpoint = open_checkpoint(source)
    output.notes(checkpoint.notes)
    with output.progress(f"reading {called(source)}") as progress:
        if algorithm == CALIBRATED or size is not None:
            text = CalibrationOptions(files=tuple(map(CalibrationFile.parse, calibration or ())))
            if samples is not None:
                text = replace(text, sequences=samples)
            how = QuantizeOptions(calibration=text)
            common: dict[str, Any] = {
                "compute": Compute(threads=options.threads),
                "overwrite": overwrite,
                "progress": progress,
            }
            if size is None:
                done = solve(name, checkpoint, out, options, how, **common)
            else:
                common |= {"quantization": how, "types": candidates or ()}
                done = export_to_size(name, checkpoint, out, size, options, **common)
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
    mixture = (done.manifest["report"] or {}).get("mixture")
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
            "mixture": mixture,
        },
        lines=[
            f"{out}: {human_size(done.size)}, {done.size * 8 / weights:.2f} bits per weight, re-read and hashed",
            *(mixture_lines(mixture) if mixture is not None else ()),
            loading,
        ],
    )


def _split_bytes(text: str | None, out: Path) -> int | None:
    """The largest size of a part; raises `BadOption` for an OUT that is called as a file is."""
    from quantkit.errors import BadOption

    if text is None:
        return None
    if out.suffix == ".gguf":
        raise BadOption(
            f"--split-max-size makes a folder with the parts, and {out} is the name of a file",
            hint=f"--out {out.with_suffix('')}",
        )
    return sizes.byte_count(text, "--split-max-size")
