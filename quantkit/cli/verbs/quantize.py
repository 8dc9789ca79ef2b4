"""`quantkit quantize`: codes and scales, in a compressed-tensors folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from quantkit.cli.completion import in_lower_case, plugins
from quantkit.cli.layers import calibration_lines, error_line, error_table, summary
from quantkit.cli.options import sizes
from quantkit.cli.options.shared import (
    METHODS,
    Arch,
    Bits,
    EmbeddingBits,
    GroupSize,
    Json,
    Length,
    Levels,
    Out,
    Overwrite,
    Quiet,
    Recipe,
    Samples,
    Strict,
    Symmetric,
    TargetBits,
    TargetBytes,
    Tensors,
    Threads,
    chosen_recipe,
    chosen_scheme,
    mixture_lines,
)
from quantkit.cli.options.training import (
    Batch,
    LearningRate,
    MicroBatch,
    Objective,
    Recover,
    Teacher,
    Text,
    TrainLength,
    training_lines,
    training_options,
    write_curve,
)
from quantkit.cli.output import Output, called, human_size


def quantize(
    model: Annotated[Path, typer.Argument(help="A dense model: a folder, or any artifact with 16 or 32-bit weights.")],
    out: Out,
    method: Annotated[str, typer.Option("--method", autocompletion=plugins("methods"), help=METHODS)] = "gptq",
    bits: Bits = None,
    group_size: GroupSize = None,
    symmetric: Symmetric = None,
    levels: Levels = None,
    scale_dtype: Annotated[
        str | None,
        typer.Option(
            "--scale-dtype",
            callback=in_lower_case,
            help="float16, bfloat16 or float32.",
            show_default="float16, ternary bfloat16",
        ),
    ] = None,
    strict: Strict = False,
    recipe: Recipe = None,
    embedding_bits: EmbeddingBits = None,
    target_bits: TargetBits = None,
    target_size: TargetBytes = None,
    target_format: Annotated[
        str,
        typer.Option("--target-format", help="The container whose files the target is about: mlx, onnx, ..."),
    ] = "compressed-tensors",
    calibration: Annotated[
        list[str] | None,
        typer.Option(
            "--calibration",
            metavar="FILE[:WEIGHT]",
            help="Text to calibrate on beside what the model writes itself: .txt, .jsonl (text or messages) or "
            ".parquet; may be given again. A file counts 1 unless told, and own text 1.",
            show_default="own text alone",
        ),
    ] = None,
    only_files: Annotated[
        bool,
        typer.Option("--only-files", help="Calibrate on the files alone: good for text like theirs, worse for others."),
    ] = False,
    samples: Samples = 128,
    length: Length = 512,
    skip_positions: Annotated[
        int,
        typer.Option("--skip-positions", min=0, help="First tokens of every sequence whose large inputs are shrunk."),
    ] = 4,
    propagate: Annotated[
        bool, typer.Option("--propagate/--no-propagate", help="Let each layer make up for what earlier layers lost.")
    ] = True,
    smooth: Annotated[
        bool | None,
        typer.Option(
            "--smooth/--no-smooth",
            help="Scale what layers read, at no cost later on, so that large inputs lose less; for awq unless told.",
            show_default="for awq",
        ),
    ] = None,
    fisher: Annotated[
        bool,
        typer.Option("--fisher/--no-fisher", help="gptq: let errors count by what they do to the model's predictions."),
    ] = True,
    recover: Recover = None,
    text: Text = None,
    teacher: Teacher = None,
    train_length: TrainLength = None,
    batch: Batch = None,
    micro_batch: MicroBatch = None,
    learning_rate: LearningRate = None,
    objective: Objective = None,
    seed: Annotated[
        int,
        typer.Option("--seed", min=0, help="Seed of generated text, and of the order of training text."),
    ] = 0,
    arch: Arch = "native",
    device: Annotated[
        str, typer.Option("--device", callback=in_lower_case, help="cpu or cuda: what calibrated methods compute on.")
    ] = "cpu",
    bfloat16: Annotated[
        bool | None,
        typer.Option(
            "--bfloat16/--no-bfloat16",
            help="Precision of calibration forwards. Default: bfloat16 where the CPU has instructions for it.",
            show_default=False,
        ),
    ] = None,
    threads: Threads = None,
    overwrite: Overwrite = False,
    tensors: Tensors = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Quantize a dense model's linear layers; embedding and head where told so; norms keep their type.

    A run that was stopped, by whatever, goes on after its last finished block when the same command is given again.
    """
    from quantkit import (
        CalibrationFile,
        CalibrationOptions,
        Compute,
        QuantizeOptions,
        loads_in,
        open_checkpoint,
        parse_target,
        quantize_to_size,
    )
    from quantkit import quantize as make
    from quantkit import recover as train
    from quantkit.errors import BadOption

    output = Output(as_json=as_json, quiet=quiet)
    size = sizes.target_size(target_size, target_bits)
    if size is not None and recover is not None:
        raise BadOption("--recover trains weights of a given scheme", hint="leave the target size out")
    scheme = chosen_scheme(
        method, bits=bits, group_size=group_size, symmetric=symmetric, scale_dtype=scale_dtype, levels=levels
    )
    options = QuantizeOptions(
        method=method,
        scheme=scheme,
        recipe=chosen_recipe(recipe, embedding_bits),
        calibration=CalibrationOptions(
            files=tuple(CalibrationFile.parse(text) for text in calibration or ()),
            own_text=not only_files,
            sequences=samples,
            length=length,
            seed=seed,
            skip_positions=skip_positions,
        ),
        propagate=propagate,
        smooth=smooth,
        fisher=fisher,
        strict=strict,
    )
    training = training_options(
        recover,
        text,
        teacher=teacher,
        length=train_length,
        batch=batch,
        micro_batch=micro_batch,
        learning_rate=learning_rate,
        objective=objective,
        seed=seed if recover is not None else None,
    )
    compute = Compute(threads=threads or os.cpu_count() or 1, device=device, bfloat16=bfloat16)
    checkpoint = open_checkpoint(model)
    output.notes(checkpoint.notes)
    with output.progress(f"reading {called(model)}") as progress:
        common: dict[str, Any] = {"compute": compute, "arch": arch, "overwrite": overwrite, "progress": progress}
        if size is not None:
            container, container_options = parse_target(target_format)
            done = quantize_to_size(
                checkpoint, out, size, options, container=container, container_options=container_options, **common
            )
        elif training is None:
            done = make(checkpoint, out, options, **common)
        else:
            trained = train(checkpoint, out, options, training, teacher=teacher, **common)
            if trained is None:
                return  # one of several processes, of which the first one writes and speaks
            done = trained
    output.notes(note for note in done.manifest["notes"] if note not in checkpoint.notes)
    output.notes(done.leftovers)
    if done.resumed:
        output.note(f"note: {done.resumed} steps were finished before by a run that was stopped")
    report, loading = done.manifest["report"], loads_in(done.path)
    errors = {name: float(tensor["error"]) for name, tensor in report["tensors"].items()}
    fallbacks = {name: tensor["fallback"] for name, tensor in report["tensors"].items() if tensor["fallback"]}
    if training is not None:
        write_curve(out, report["training"], output)
    output.result(
        {"path": str(out), "size": done.size, "loads_in": loading, "errors": summary(errors), "report": report},
        *([error_table(errors, fallbacks, every=tensors)] if errors else []),
        lines=[
            f"{out}: {scheme}, {human_size(done.size)}, {len(errors)} layers by {report['method']}",
            *(mixture_lines(report["mixture"]) if "mixture" in report else ()),
            loading,
            *calibration_lines(report["calibration"]),
            *(training_lines(report["training"]) if training is not None else ()),
            *([error_line(errors, every=tensors)] if errors else []),
        ],
    )
    if report["calibration"] is not None:
        output.notes(report["calibration"]["notes"])
        for warning in report["calibration"]["warnings"]:
            output.warn(warning)
    if fallbacks:
        name, why = next(iter(fallbacks.items()))
        output.note(f"note: {len(fallbacks)} of {len(errors)} layers are rounded to nearest ({name}: {why})")
