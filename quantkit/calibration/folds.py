"""Leaving out one source at a time: what helps only where the model was calibrated must not look like a gain.

Every choice that a run makes by itself is judged on sequences of a source that was not there when it was made. To keep
the memory of statistics bounded, sources share FOLDS folds, and a whole fold is left out at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from quantkit.calibration.samples import Samples, Source

FOLDS = 3
MOST = 8.0
"""A token counts at most so many times the mean: a source of one line shall not decide."""


def folds_of(samples: Samples) -> tuple[int, ...]:
    """The fold of every sequence, below FOLDS.

    Files have folds of their own as far as there are folds, and share none with own text; kinds of own text that lie
    beside each other share one. A single source is cut into runs of sequences.
    """
    sources = samples.coverage.sources
    count = len(samples.sequences)
    if len(sources) == 1:
        return tuple(number * FOLDS // count for number in range(count))
    by_source = _by_source(sources)
    return tuple(by_source[origin] for origin in samples.origins)


def _by_source(sources: Sequence[Source]) -> list[int]:
    own = sum(source.own for source in sources)
    files = len(sources) - own
    of_files = min(files, FOLDS - 1 if own else FOLDS)
    folds, seen_own, seen_files = [], 0, 0
    for source in sources:
        if source.own:
            folds.append(of_files + seen_own * (FOLDS - of_files) // own)
            seen_own += 1
        else:
            folds.append(seen_files * of_files // files)
            seen_files += 1
    return folds


def fold_names(samples: Samples) -> tuple[str, ...]:
    """What is in each fold, for reports."""
    sources, folds = samples.coverage.sources, folds_of(samples)
    if len(sources) == 1:
        parts = len(set(folds))
        return tuple(f"{sources[0].name}, part {part + 1} of {parts}" for part in range(parts))
    by_source = _by_source(sources)
    return tuple(
        " + ".join(source.name for source, own in zip(sources, by_source, strict=True) if own == fold)
        for fold in sorted(set(by_source))
    )


def token_weights(samples: Samples, skip_positions: int) -> tuple[float, ...]:
    """How much each token of every sequence counts: a source's tokens together as its weight says, 1 in the mean."""
    sources = samples.coverage.sources
    counted = [0] * len(sources)
    for sequence, origin in zip(samples.sequences, samples.origins, strict=True):
        counted[origin] += max(len(sequence) - skip_positions, 0)
    total, weight = sum(counted), sum(source.weight for source in sources)
    by_source = [
        min(MOST, source.weight / weight * total / tokens) if tokens else 0.0
        for source, tokens in zip(sources, counted, strict=True)
    ]
    return tuple(by_source[origin] for origin in samples.origins)
