"""What a model is calibrated on: the options, the sequences, and which source each of them comes from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.errors import BadOption
from quantkit.models.spec import ModelSpec

MAX_SEQUENCES, MAX_LENGTH, MAX_SEED, MAX_WEIGHT = 1 << 32, 1 << 24, (1 << 63) - 1, 1e6
"""Of calibration options; what memory allows is less (`quantkit.pipeline.planning.peak_memory`)."""
WEIGHED_TOKENS = 2048
"""The fewest that `weighed_tokens` takes."""
ALL_WEIGHED_FROM = 1 << 15
"""From so many tokens on it takes all."""
WAVE_TOKENS = 4096
"""Of them, so many have their states in front of every block in memory at a time."""
LOOKED_AT = 256
"""Positions of each source, evenly spread, at which predictions are measured at the end of a run."""
OWN_TEXT = "own text"
"""Name of what the model writes itself."""


def weighed_tokens(tokens: int) -> int:
    """How many of so many tokens of calibration text are sent through the model and back
    (`quantkit.calibration.fisher`).

    A larger share of a longer text: who calibrates on little wants to be done soon, who takes much wants the best.
    """
    return min(tokens, max(WEIGHED_TOKENS, tokens * tokens // ALL_WEIGHED_FROM))


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationFile:
    """A text to calibrate on: .txt, .jsonl or .parquet, and how much it counts beside others; own text counts 1."""

    path: Path
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.weight <= MAX_WEIGHT:
            raise BadOption(
                f"{self.path}: a calibration weight must be above 0 and at most {MAX_WEIGHT:,.0f}, is {self.weight}"
            )

    @classmethod
    def parse(cls, text: str) -> CalibrationFile:
        """FILE or FILE:WEIGHT; a colon that no number follows belongs to the name."""
        name, colon, weight = text.rpartition(":")
        try:
            return cls(path=Path(name), weight=float(weight)) if colon and name else cls(path=Path(text))
        except ValueError:
            return cls(path=Path(text))


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationOptions:
    """What to calibrate on.

    files: texts. own_text: whether what the model writes itself joins them.
    sequences, length: how many sequences, of all sources together, of at most how many tokens.
    seed: of the sampling, where the model generates.
    skip_positions: tokens at the start of every sequence that count no more than others. They attract attention from
        everywhere and carry activations hundreds of times the usual size.
    """

    files: tuple[CalibrationFile, ...] = ()
    own_text: bool = True
    sequences: int = 128
    length: int = 512
    seed: int = 0
    skip_positions: int = 4

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("sequences", self.sequences, 1, MAX_SEQUENCES),
            ("length", self.length, 2, MAX_LENGTH),
            ("seed", self.seed, 0, MAX_SEED),
            ("skip_positions", self.skip_positions, 0, MAX_LENGTH),
        ):
            if not low <= value <= high:
                raise BadOption(f"calibration {name} must be from {low} to {high:,}, is {value:,}")
        if not self.files and not self.own_text:
            raise BadOption("there is nothing to calibrate on", hint="name a file, or let the model write its own text")
        if self.sequences < self.sources:
            raise BadOption(
                f"{self.sequences} calibration sequences cannot come from {self.sources} sources",
                hint=f"--samples {self.sources} or more",
            )

    @property
    def sources(self) -> int:
        """How many there are; own text is one."""
        return len(self.files) + self.own_text

    def shares(self) -> list[int]:
        """How many sequences each file gives, and then own text: by their weights, at least one, `sequences` in all."""
        weights = [*(file.weight for file in self.files), *([1.0] if self.own_text else [])]
        spare, total = self.sequences - len(weights), math.fsum(weights)
        bounds = [round(spare * math.fsum(weights[:i]) / total) for i in range(len(weights) + 1)]
        return [1 + stop - start for start, stop in pairwise(bounds)]


def check_context(options: CalibrationOptions, spec: ModelSpec) -> None:
    """Raise `BadOption` for sequences longer than the model's context."""
    if options.length > spec.max_position_embeddings:
        raise BadOption(
            f"calibration sequences of {options.length:,} tokens exceed the model's context of "
            f"{spec.max_position_embeddings:,}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where some of the sequences come from, as the manifest records it.

    name: of the file, or "own text: code". kind: "text", "jsonl", "parquet", "generated", or what was given. digest:
    SHA-256 of the file, or of the prompts. weight: how much all of it counts. own: whether the model wrote it.
    """

    name: str
    kind: str
    digest: str
    weight: float = 1.0
    sequences: int = 0
    tokens: int = 0
    distinct_tokens: int = 0
    own: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """What a model was calibrated on, as the manifest records it.

    own_text: a line about what the model wrote itself. notes: lines about what is not as it should be. warnings: about
    what makes the text unfit for its purpose.
    """

    sources: tuple[Source, ...]
    sequences: int
    tokens: int
    longest: int
    distinct_tokens: int
    seed: int | None = None
    own_text: str | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Coverage:
        """Inverse of `to_json`."""
        lists = {name: tuple(data[name]) for name in ("notes", "warnings")}
        return cls(**{**data, **lists, "sources": tuple(Source(**one) for one in data["sources"])})


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Calibration sequences: arrays int64 [tokens] of different lengths, and what they are.

    origins: for every sequence the number of its source in `coverage.sources`.
    """

    sequences: tuple[np.ndarray, ...]
    origins: tuple[int, ...]
    coverage: Coverage


def make_samples(
    sequences: Sequence[np.ndarray], *, source: str, digest: str, seed: int | None = None, notes: Sequence[str] = ()
) -> Samples:
    """Sequences of one source."""
    return joined([(Source(name=source, kind=source, digest=digest), sequences)], seed=seed, notes=notes)


def joined(
    parts: Sequence[tuple[Source, Sequence[np.ndarray]]],
    *,
    seed: int | None = None,
    own_text: str | None = None,
    notes: Sequence[str] = (),
    warnings: Sequence[str] = (),
) -> Samples:
    """All sequences of several sources, mixed evenly: the first so many of them are of all sources as well."""
    places = sorted(
        ((number + 0.5) / len(sequences), origin, number)
        for origin, (_, sequences) in enumerate(parts)
        for number in range(len(sequences))
    )
    mixed = tuple(parts[origin][1][number] for _, origin, number in places)
    coverage = Coverage(
        sources=tuple(_described(source, sequences) for source, sequences in parts),
        sequences=len(mixed),
        tokens=sum(map(len, mixed)),
        longest=max(map(len, mixed)),
        distinct_tokens=_distinct(mixed),
        seed=seed,
        own_text=own_text,
        notes=tuple(notes),
        warnings=tuple(warnings),
    )
    return Samples(mixed, tuple(origin for _, origin, _ in places), coverage)


def merged(made: Sequence[Samples]) -> Samples:
    """All sources of several `Samples` as one."""
    parts = [
        (source, [row for row, origin in zip(samples.sequences, samples.origins, strict=True) if origin == number])
        for samples in made
        for number, source in enumerate(samples.coverage.sources)
    ]
    coverages = [samples.coverage for samples in made]
    return joined(
        parts,
        seed=next((coverage.seed for coverage in coverages if coverage.seed is not None), None),
        own_text=next((coverage.own_text for coverage in coverages if coverage.own_text is not None), None),
        notes=[note for coverage in coverages for note in coverage.notes],
        warnings=[warning for coverage in coverages for warning in coverage.warnings],
    )


def _described(source: Source, sequences: Sequence[np.ndarray]) -> Source:
    return replace(
        source,
        sequences=len(sequences),
        tokens=sum(map(len, sequences)),
        distinct_tokens=_distinct(sequences),
    )


def _distinct(sequences: Sequence[np.ndarray]) -> int:
    return len(np.unique(np.concatenate(sequences)))
