"""The loss on the way: a list for the manifest, and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from quantkit.artifacts.plain_file import SOFTWARE, check_free, is_own_picture, write_plain
from quantkit.errors import MissingDependency

POINTS = 500
"""Most points of a stage in a manifest; each is the mean of the steps that it stands for."""

Curve = Sequence[tuple[int, str, float]]
"""[step, stage, loss], the steps counted from 0 over all stages."""


def thinned(curve: Curve) -> list[list[Any]]:
    """The curve with at most `POINTS` points for every stage, each at the last step that it stands for."""
    found: list[list[Any]] = []
    for name, points in groupby(curve, key=lambda point: point[1]):
        steps = list(points)
        count = min(len(steps), POINTS)
        bounds = [len(steps) * i // count for i in range(count + 1)]
        for start, stop in pairwise(bounds):
            losses = [loss for _, _, loss in steps[start:stop]]
            found.append([steps[stop - 1][0], name, sum(losses) / len(losses)])
    return found


def write_loss_picture(path: Path, report: Mapping[str, Any]) -> None:
    """Draw the curve of a training's report as a PNG, in place of an earlier one.

    Raises:
        MissingDependency: there is no matplotlib. OutputExists: something else lies there. Others: see `write_plain`.
    """
    drawn = _picture(report)
    if drawn is None:
        raise MissingDependency("no picture of the loss without matplotlib", hint="pip install 'quantkit[training]'")
    check_free(path, overwrite=True, ours=is_own_picture)
    write_plain(path, drawn, overwrite=True)


def _picture(report: Mapping[str, Any]) -> bytes | None:
    """Stage by stage on logarithmic axes; None without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - an extra, and heavy
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError:
        return None
    stages: dict[str, list[tuple[int, float]]] = {}
    for step, name, loss in report["curve"]:
        stages.setdefault(str(name).partition(",")[0], []).append((step, loss))
    figure = Figure(figsize=(5 * max(1, len(stages)), 3.5), layout="constrained")
    axes = figure.subplots(1, max(1, len(stages)), squeeze=False)[0]
    for axis, (name, points) in zip(axes, stages.items(), strict=False):
        axis.plot([step for step, _ in points], [loss for _, loss in points], linewidth=0.8)
        axis.set_title(name)
        axis.set_xlabel("step")
        axis.set_ylabel("loss")
        axis.set_yscale("log")
    file = BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(file, format="png", metadata={"Software": SOFTWARE})
    return file.getvalue()
