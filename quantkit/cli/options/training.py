"""The options of `quantize` that train what it has made, and what is said of a training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantkit.cli.completion import in_lower_case

if TYPE_CHECKING:
    from quantkit import TrainingOptions
    from quantkit.cli.output import Output

Recover = Annotated[
    int | None,
    typer.Option(
        "--recover", min=1, metavar="STEPS", help="Train the quantized model for so many steps.", show_default="no"
    ),
]
Text = Annotated[
    list[Path] | None,
    typer.Option(
        "--text", metavar="FILE", help="--recover: text to train on (.txt, .jsonl, .parquet); may be repeated."
    ),
]
Teacher = Annotated[
    Path | None,
    typer.Option("--teacher", help="--recover: whose predictions are aimed at.", show_default="the model itself"),
]
TrainLength = Annotated[
    int | None, typer.Option("--train-length", min=2, help="--recover: tokens per sequence.", show_default="512")
]
Batch = Annotated[int | None, typer.Option("--batch", min=1, help="--recover: sequences per step.", show_default="4")]
MicroBatch = Annotated[
    int | None,
    typer.Option("--micro-batch", min=1, help="--recover: of these, how many at a time.", show_default="1"),
]
LearningRate = Annotated[
    float | None,
    typer.Option("--learning-rate", help="--recover: of weights, in steps of their grid.", show_default="0.005"),
]
Objective = Annotated[
    str | None,
    typer.Option(
        "--objective",
        callback=in_lower_case,
        help="--recover: distillation (teacher), decoupled (text, then teacher), joint (both at once) or qat (text).",
        show_default="distillation",
    ),
]


def training_options(steps: int | None, files: Sequence[Path] | None, **given: Any) -> TrainingOptions | None:  # noqa: ANN401 - of the types of `TrainingOptions`
    """How to train, None where it was not asked for; what was not given stays at its default.

    Raises:
        BadOption: an option of a training without `--recover`, or a value that there is not.
    """
    from quantkit import TrainingOptions
    from quantkit.errors import BadOption

    settings = {name: value for name, value in given.items() if value is not None}
    if steps is None:
        if files or settings:
            named = "--text" if files else f"--{next(iter(settings)).replace('_', '-')}"
            raise BadOption(f"{named} is for training, and none was asked for", hint="add --recover STEPS")
        return None
    settings.pop("teacher", None)
    return TrainingOptions(files=tuple(files or ()), steps=steps, **settings)


def training_lines(training: Mapping[str, Any]) -> Iterator[str]:
    """What a training has brought, on text that was held out of it."""
    for name, found in training["measured"].items():
        if found:
            yield (
                f"{name}: perplexity {found['perplexity']:.2f}, KL {found['kl']:.3g}, "
                f"same most likely token {found['top1']:.1%}"
            )
    if training["kept_start"]:
        yield "training has brought nothing on text held out: the model is what it was before"


def write_curve(out: Path, training: Mapping[str, Any], output: Output) -> None:
    """Write the loss as `OUT.loss.png` beside the artifact, or say why there is none."""
    from quantkit import write_loss_picture
    from quantkit.errors import QuantkitError

    place = out if out.name not in ("", "..") else out.resolve()
    target = place.with_name(f"{place.name}.loss.png")
    try:
        write_loss_picture(target, training)
    except QuantkitError as error:
        output.note(f"{error}{f' ({error.hint})' if error.hint else ''}")
    else:
        output.note(f"the loss on the way: {target}")
