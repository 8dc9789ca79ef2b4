"""Artifacts and their source on the same windows of a text, side by side: `evaluate`.

The source is computed once, by the numpy reference in float32, and so is each artifact; every engine then reads the
same windows, one after the other, and its logits are compared and let go. At a time there are the logits of one window
from the source and from one artifact, float32 [T, V] each, the engines that were opened, and of every model in the
reference its head and the hidden states of all windows.

The noise floor of an engine is KL(artifact in the reference || artifact in the engine): what its arithmetic adds with
these very weights. The engine on the unquantized source would not show it: what costs most, inputs rounded to 8 bits,
is done by the kernels of quantized weights only. KL grows with the square of small differences, so that what weights
and engine lose independently adds up: `from_source` is about `weights_alone` + `floor`. A KL that is not well above its
floor is the engine's and not the artifact's. A dense export of the source, given as one more artifact, shows what the
engine does to that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import numpy as np

from quantkit.errors import BadOption
from quantkit.files.source_file import SourceFile
from quantkit.models.checkpoint import Checkpoint
from quantkit.progress import Progress, StagedWork
from quantkit.verification.evaluation.figures import ArtifactFigures, Distance, Evaluation, Mean, ModelFigures, Rows
from quantkit.verification.evaluation.picture import check_picture, write_picture
from quantkit.verification.evaluation.subjects import (
    Subject,
    check_windows,
    engine_predictions,
    exact_predictions,
    open_source,
    open_subject,
)
from quantkit.verification.evaluation.windows import WindowOptions, Windows, read_windows
from quantkit.verification.metrics import surprise

SOURCE = "source"
"""The stage of the work that is the source's; those of artifacts are numbered."""


def evaluate(
    artifacts: str | Path | Sequence[str | Path],
    *,
    against: str | Path,
    text: str | Path,
    engine: str = "reference",
    sequences: int = 16,
    length: int = 512,
    skip_positions: int = 0,
    noise_floor: bool = True,
    plot: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure what artifacts lost on a text: perplexity, KL and agreement beside the model that they were made from.

    Row t of a window of T tokens predicts token t + 1; rows `skip_positions` to T - 2 are counted, in every figure. The
    last one predicts what is not in the window.

    Args:
        artifacts: model folders, quantized folders, or single-file artifacts; one or several.
        against: the model that all of them were made from; it is computed by the reference runtime.
        text: a file of text, .txt, .jsonl or .parquet.
        engine: a runtime's name; "auto" = for each artifact the first installed engine that runs it.
        sequences: windows, evenly spread over the text.
        length: tokens of a window, BOS included.
        skip_positions: predictions at the start of every window that are not counted.
        noise_floor: whether to run artifacts in the reference as well where the engine is another, which tells what of
            their figures is the engine's arithmetic.
        plot: a PNG file to write: KL against bytes.
        overwrite: replace that file where it exists.
        progress: told how far it is.

    Raises:
        BadOption: no artifacts, counts that mean nothing, a text that is too short, windows beyond a model's context,
            an artifact that has another vocabulary or reads the text as other tokens than the source, or an engine that
            does not load it.
        EngineFailed: the engine refuses an artifact, or fails. MissingDependency: it, or matplotlib, is not installed.
        OutputExists, WriteFailed: the picture cannot be written.
        What `open_checkpoint` and reading the text raise.
    """
    options = WindowOptions(sequences=sequences, length=length, skip_positions=skip_positions)
    paths = [artifacts] if isinstance(artifacts, (str, Path)) else artifacts
    if not paths:
        raise BadOption("no artifact to evaluate")
    picture = Path(plot) if plot is not None else None
    if picture is not None:
        check_picture(picture, overwrite=overwrite)
    source = open_source(Path(against))
    subjects = [open_subject(Path(path), engine, source) for path in paths]
    windows = read_windows(source, Path(text), options)
    notes = [windows.shortage(sequences), *(windows.reading_problem(subject.checkpoint) for subject in subjects)]
    check_windows([source, *(subject.checkpoint for subject in subjects)], windows.longest)
    found = _evaluated(source, subjects, windows, noise_floor=noise_floor, progress=progress, notes=notes)
    if picture is not None:
        write_picture(picture, found)
    return found


def _evaluated(
    source: Checkpoint,
    subjects: Sequence[Subject],
    windows: Windows,
    *,
    noise_floor: bool,
    progress: Progress | None,
    notes: Sequence[str | None],
) -> Evaluation:
    measured, beside = _measured(source, subjects, windows, noise_floor, progress)
    weights = sum(weight.size for weight in source.weights.values())
    figures = tuple(one.figures(weights) for one in beside)
    return Evaluation(
        text=windows.name,
        text_digest=windows.digest,
        windows=len(windows.token_ids),
        tokens=windows.tokens,
        positions=sum(map(len, measured)),
        skip_positions=windows.skip_positions,
        source=model_figures(source, weights, measured),
        artifacts=figures,
        notes=tuple(note for note in notes if note is not None),
    )


def _measured(
    source: Checkpoint,
    subjects: Sequence[Subject],
    windows: Windows,
    noise_floor: bool,
    progress: Progress | None,
) -> tuple[list[np.ndarray], list[Beside]]:
    """How surprising the text is to the source, by position for each window, and what was found beside it."""
    exactly = [subject.is_exact or noise_floor for subject in subjects]
    stages = [SOURCE, *(_stage(number, exact=True) for number, exact in enumerate(exactly) if exact)]
    stages += [_stage(number, exact=False) for number, subject in enumerate(subjects) if not subject.is_exact]
    work = StagedWork(progress, dict.fromkeys(stages, 1.0))
    ids, surprises = windows.token_ids, []
    with ExitStack() as stack:
        beside = []
        for number, (subject, exact) in enumerate(zip(subjects, exactly, strict=True)):
            engine = None
            if not subject.is_exact:
                tell = work.stage(_stage(number, exact=False), beside=True)
                tell(f"loading {subject.name} in {subject.runtime.name}", 0, 1)
                session = stack.enter_context(subject.runtime.open(subject.checkpoint.path))
                engine = engine_predictions(subject, session, ids, source.spec.vocab_size, tell)
            tell = work.stage(_stage(number, exact=True), beside=True)
            reference = exact_predictions(subject.checkpoint, ids, stack, tell) if exact else None
            beside.append(Beside(subject, reference, engine))
        originals = exact_predictions(source, ids, stack, work.stage(SOURCE, beside=True))
        for window in ids:
            counted = slice(windows.skip_positions, len(window) - 1)
            surprises.append(_compare(window, counted, next(originals), beside))
    return surprises, beside


def _compare(window: Sequence[int], counted: slice, original: np.ndarray, beside: Sequence[Beside]) -> np.ndarray:
    """Add a window to what was found, and return how surprising it is to the source; lets all logits go."""
    surprises = surprise(original, window)[counted]
    for one in beside:
        one.add(window, counted, original, surprises)
    return surprises


class Beside:
    """What is found of one artifact, window by window.

    exact, engine: its predictions in the reference, and in another engine; the latter are under test where there are
    any, and the former then tell what the engine adds.
    """

    def __init__(
        self, subject: Subject, exact: Iterator[np.ndarray] | None, engine: Iterator[np.ndarray] | None
    ) -> None:
        self._subject, self._exact, self._engine = subject, exact, engine
        self._surprises: list[np.ndarray] = []
        self._increases: list[np.ndarray] = []
        self._from_source: list[Rows] = []
        self._alone: list[Rows] = []
        self._floor: list[Rows] = []

    def add(self, window: Sequence[int], counted: slice, original: np.ndarray, surprises: np.ndarray) -> None:
        """Compare the next window with the source's logits [T, V] and how surprising it is to the source."""
        exact = next(self._exact) if self._exact is not None else None
        tested = next(self._engine) if self._engine is not None else exact
        assert tested is not None
        own = surprise(tested, window)[counted]
        self._surprises.append(own)
        self._increases.append(own - surprises)
        self._from_source.append(Rows.of(original[counted], tested[counted]))
        if exact is not None and exact is not tested:
            self._alone.append(Rows.of(original[counted], exact[counted]))
            self._floor.append(Rows.of(exact[counted], tested[counted]))

    def figures(self, weights: int) -> ArtifactFigures:
        """All of it; weights: how many the source has."""
        model = model_figures(self._subject.checkpoint, weights, self._surprises)
        return ArtifactFigures(
            **{**asdict(model), "perplexity": model.perplexity},
            engine=self._subject.runtime.name,
            perplexity_ratio=Mean.of(self._increases).exponential(),
            from_source=Distance.of(self._from_source),
            weights_alone=Distance.of(self._alone) if self._alone else None,
            floor=Distance.of(self._floor) if self._floor else None,
        )


def model_figures(checkpoint: Checkpoint, weights: int, surprises: Sequence[np.ndarray]) -> ModelFigures:
    """Size and perplexity of a model; weights: how many the source has."""
    size = sum(SourceFile.open(path).size for path in checkpoint.inputs)
    return ModelFigures(
        path=str(checkpoint.path),
        format=checkpoint.format,
        size=size,
        bits_per_weight=8 * size / weights,
        perplexity=Mean.of(surprises).exponential(),
    )


def _stage(number: int, *, exact: bool) -> str:
    return f"{'reference' if exact else 'engine'} {number}"
