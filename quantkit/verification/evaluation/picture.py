"""KL against bytes: the picture of an evaluation."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.artifacts.stage_writer import refusals
from quantkit.errors import BadOption, MissingDependency, OutputExists, WriteFailed
from quantkit.verification.evaluation.figures import ArtifactFigures, Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIX = ".png"
LEAST_KL = 1e-12
"""What is smaller is drawn there: a logarithmic axis has no zero."""
INK, FAINT = "#0072b2", "0.55"
TWICE = 2
"""Standard errors of a bar to each side."""


def check_picture(path: Path, *, overwrite: bool) -> None:
    """Refuse before any work what cannot be drawn or written.

    Raises:
        BadOption: the name is not that of a PNG file. MissingDependency: there is no matplotlib. OutputExists: it is
        there. WriteFailed: its folder is not.
    """
    if path.suffix.lower() != SUFFIX:
        raise BadOption(f"{path}: a picture is written as {SUFFIX}", hint=f"call it {path.name}{SUFFIX}")
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingDependency("drawing needs matplotlib", hint="pip install 'quantkit[plot]', or leave --plot out")
    if not path.parent.is_dir():
        raise WriteFailed(f"{path}: {path.parent} is not a folder", hint="create the folder first")
    if path.is_dir() or (os.path.lexists(path) and not overwrite):
        raise OutputExists(f"{path} already exists", hint="choose another name, or replace it with --overwrite")


def write_picture(path: Path, evaluation: Evaluation) -> None:
    """Draw it and write it in one step; raises `WriteFailed` or `NoSpace`."""
    drawn, part = picture(evaluation), path.with_name(f".{path.name}.part")
    with refusals(f"{path}: cannot be written"):
        try:
            part.write_bytes(drawn)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def picture(evaluation: Evaluation) -> bytes:
    """A PNG: mean KL of every artifact against its bytes, with two standard errors, and the engine's noise floor."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - an extra, and heavy
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(7.5, 5), dpi=110, layout="constrained")
    axes = figure.subplots()
    artifacts = evaluation.artifacts
    sizes = [artifact.size / 1e6 for artifact in artifacts]
    axes.set_yscale("log")
    _draw_floors(axes, artifacts)
    axes.errorbar(
        sizes,
        [max(artifact.from_source.kl.value, LEAST_KL) for artifact in artifacts],
        yerr=[TWICE * (artifact.from_source.kl.error or 0.0) for artifact in artifacts],
        fmt="o",
        color=INK,
        capsize=3,
        label="artifact from source, ± 2 standard errors",
    )
    for name, size, artifact in zip(evaluation.names, sizes, artifacts, strict=True):
        place = (size, max(artifact.from_source.kl.value, LEAST_KL))
        axes.annotate(name, place, xytext=(0, 8), textcoords="offset points", ha="center", fontsize=8)
    axes.margins(x=0.15, y=0.15)
    axes.set_xlabel("MB of weights")
    axes.set_ylabel("mean KL(source || artifact), nats per token")
    engines = ", ".join(sorted({artifact.engine for artifact in artifacts}))
    axes.set_title(f"{evaluation.positions:,} predictions on {evaluation.text}, in {engines}", fontsize=10)
    axes.grid(color="0.92", which="both")
    axes.set_axisbelow(True)
    axes.legend(fontsize=8)
    file = BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _draw_floors(axes: Axes, artifacts: Sequence[ArtifactFigures]) -> None:
    floors = [(one.size / 1e6, max(one.floor.kl.value, LEAST_KL)) for one in artifacts if one.floor is not None]
    if floors:
        axes.plot(
            *zip(*floors, strict=True),
            linestyle="none",
            marker="_",
            markersize=12,
            color=FAINT,
            label="noise floor: the engine from the reference",
        )
