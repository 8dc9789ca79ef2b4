"""KL against bytes: the picture of an evaluation."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.artifacts.plain_file import SOFTWARE, check_free, is_own_picture, write_plain
from quantkit.errors import BadOption, MissingDependency
from quantkit.verification.evaluation.figures import ArtifactFigures, Evaluation, Mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIX = ".png"
LEAST_KL = 1e-12
"""What is smaller is drawn there: a logarithmic axis has no zero."""
INK, FAINT = "#0072b2", "0.55"
ROOM = 3.0
TWICE = 2
"""Standard errors of a bar to each side."""


def check_picture(path: Path, *, overwrite: bool) -> None:
    """Refuse before any work what cannot be drawn or written.

    Raises:
        BadOption: the name is not that of a PNG file. MissingDependency: there is no matplotlib. Others: see
        `check_free`; with `overwrite` pictures of quantkit are replaced.
    """
    if path.suffix.lower() != SUFFIX:
        raise BadOption(f"{path}: a picture is written as {SUFFIX}", hint=f"call it {path.name}{SUFFIX}")
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingDependency("drawing needs matplotlib", hint="pip install 'quantkit[plot]', or leave --plot out")
    check_free(path, overwrite=overwrite, ours=is_own_picture)


def write_picture(path: Path, evaluation: Evaluation) -> None:
    """Draw it and write it in one step; raises `WriteFailed` or `NoSpace`."""
    write_plain(path, picture(evaluation), overwrite=True)  # `check_picture` has looked at what lies there


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
    _name_points(axes, evaluation)
    axes.margins(x=0.15)
    _show_from_to(axes, [mean.value for one in artifacts for mean in _means(one)])
    axes.set_xlabel("MB of weights")
    axes.set_ylabel("mean KL(source || artifact), nats per token")
    engines = ", ".join(sorted({artifact.engine for artifact in artifacts}))
    axes.set_title(f"{evaluation.positions:,} predictions on {evaluation.text}, in {engines}", fontsize=10)
    axes.grid(color="0.92", which="both")
    axes.set_axisbelow(True)
    axes.legend(fontsize=8)
    file = BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(file, format="png", metadata={"Software": SOFTWARE})
    return file.getvalue()


def _name_points(axes: Axes, evaluation: Evaluation) -> None:
    """What is larger loses less: there is room below to the left of the best points, and above to the right of all.

    Of the best, the names go to either side in turn; of others, that are larger than one that loses no more, above.
    """
    named = sorted(zip(evaluation.names, evaluation.artifacts, strict=True), key=lambda pair: pair[1].size)
    least, below = math.inf, False
    for name, artifact in named:
        kl = artifact.from_source.kl.value
        if kl < least:
            least, below = kl, not below
        under = below and kl == least
        axes.annotate(
            name,
            (artifact.size / 1e6, max(kl, LEAST_KL)),
            xytext=(-6, -5) if under else (6, 5),
            textcoords="offset points",
            ha="right" if under else "left",
            va="top" if under else "bottom",
            fontsize=8,
        )


def _means(artifact: ArtifactFigures) -> list[Mean]:
    """All that is drawn of an artifact."""
    return [artifact.from_source.kl, *([artifact.floor.kl] if artifact.floor is not None else [])]


def _show_from_to(axes: Axes, values: Sequence[float]) -> None:
    """Leave room above and below what is drawn, and for the names of points."""
    drawn = [max(value, LEAST_KL) for value in values if math.isfinite(value)] or [1.0]
    axes.set_ylim(min(drawn) / ROOM, max(drawn) * ROOM)


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
