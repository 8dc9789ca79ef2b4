"""What is told of models that were evaluated side by side: pure data, with a JSON object.

Standard errors are those of means over windows: what a model loses on one token tells something of the next, so that
windows are drawn from the text and not tokens. They say how well the figure of this text is known from these windows,
and nothing of other kinds of text. With a single window there is none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.artifacts.manifest import plain
from quantkit.artifacts.output_paths import size_text
from quantkit.verification.metrics import kl_by_position, same_favourites

FAVOURITES = 5
LARGEST_LOGARITHM = 700.0
"""Whose exponential a float64 still holds."""
Table = list[tuple[str, ...]]
"""Rows of text, the heads first."""
MODELS = ("model", "engine", "size", "bits/weight", "perplexity", "× source")
DISTANCES = ("mean", "median", "99 %", "top 1", "top 5")
"""Heads of tables."""


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over all positions, and its standard error; None = there is one window only."""

    value: float
    error: float | None

    @classmethod
    def of(cls, windows: Sequence[np.ndarray]) -> Mean:
        """Of figures by position, float64, one array for each window, of different lengths."""
        sums, counts = (np.array([f(row) for row in windows], np.float64) for f in (np.sum, len))
        mean, number = sums.sum() / counts.sum(), len(windows)
        if number < 2:
            return cls(float(mean), None)
        squares = np.square(sums - mean * counts).sum() * number / (number - 1)
        return cls(float(mean), float(np.sqrt(squares) / counts.sum()))

    def exponential(self) -> Mean:
        """e to its power: of a mean of logarithms, with the error to first order."""
        value = math.exp(min(self.value, LARGEST_LOGARITHM))
        return Mean(value, None if self.error is None else value * self.error)

    def in_words(self) -> str:
        """With its standard error, if it has one, to the second digit of that, four places at most."""
        if self.error is None:
            return f"{self.value:.4g}"
        digits = 1 - math.floor(math.log10(self.error)) if 0 < self.error < math.inf else 4
        places = min(max(digits, 0), 4)
        return f"{self.value:.{places}f} ± {self.error:.{places}f}"

    def by_share(self) -> str:
        """With its standard error as a share of it: for what may be of any magnitude."""
        if self.error is None or not self.value > 0:
            return f"{self.value:#.3g}"
        share = 100 * self.error / self.value
        return f"{self.value:#.3g} ± {share:.{1 if share < 9.95 else 0}f}%"


@dataclass(frozen=True, slots=True)
class Rows:
    """How far predictions Q lie from trusted ones P at each position of a window, float64 [positions].

    kl: KL(P || Q) in nats. top1, top5: what share of P's most likely token, or five tokens, are Q's.
    """

    kl: np.ndarray
    top1: np.ndarray
    top5: np.ndarray

    @classmethod
    def of(cls, trusted: np.ndarray, tested: np.ndarray) -> Rows:
        """Of logits [positions, V]."""
        shares = (same_favourites(trusted, tested, count) for count in (1, FAVOURITES))
        return cls(kl_by_position(trusted, tested), *shares)


@dataclass(frozen=True, slots=True)
class Distance:
    """How far predictions lie from trusted ones over all positions of all windows.

    kl: mean KL(trusted || tested) per position in nats; kl_median, kl_q99: its median, and what 99 of 100 positions
    stay below. top1: share of positions with the same most likely token. top5: share of the trusted five most likely
    tokens that are among the tested five.
    """

    kl: Mean
    kl_median: float
    kl_q99: float
    top1: Mean
    top5: Mean

    @classmethod
    def of(cls, windows: Sequence[Rows]) -> Distance:
        """Of all windows."""
        by_position = np.concatenate([rows.kl for rows in windows])
        median, q99 = np.quantile(by_position, (0.5, 0.99))
        means = (Mean.of([getattr(rows, name) for rows in windows]) for name in ("kl", "top1", "top5"))
        kl, top1, top5 = means
        return cls(kl, float(median), float(q99), top1, top5)

    def cells(self) -> tuple[str, ...]:
        """As text, for a row of `DISTANCES`."""
        shares = (f"{share.value:.2%}" for share in (self.top1, self.top5))
        return self.kl.by_share(), f"{self.kl_median:#.3g}", f"{self.kl_q99:#.3g}", *shares


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFigures:
    """A model, its size, and how well it predicts the text.

    path, format: where it lies, and in what container. size: bytes of the files that hold its weights.
    bits_per_weight: of these, by the source's weights: a head that an artifact stores twice counts as bytes, not as
    weights. perplexity: exp of the mean of -log q of the tokens that came.
    """

    path: str
    format: str
    size: int
    bits_per_weight: float
    perplexity: Mean

    def cells(self) -> tuple[str, ...]:
        """As text, for a row of `MODELS`."""
        return size_text(self.size), f"{self.bits_per_weight:.2f}", self.perplexity.in_words()


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactFigures(ModelFigures):
    """An artifact beside its source.

    engine: who computed. perplexity_ratio: its perplexity over the source's, on the same tokens, so that its error is
    far smaller than those of both. from_source: the artifact in the engine from the source in the reference.
    weights_alone: the artifact in the reference from the source in the reference: what the weights lost, in exact
    arithmetic. floor: the artifact in the engine from the artifact in the reference: what the engine's arithmetic adds
    with these very weights. The last two are None where the engine is the reference, or they were not asked for.
    """

    engine: str
    perplexity_ratio: Mean
    from_source: Distance
    weights_alone: Distance | None = None
    floor: Distance | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Artifacts side by side on one text.

    text, text_digest: name of the file, and SHA-256 of its bytes. windows, tokens, positions: how many were read, and
    how many predictions each figure is a mean of. skip_positions: predictions at the start of every window that were
    not counted. notes: lines about what is not as it should be.
    """

    text: str
    text_digest: str
    windows: int
    tokens: int
    positions: int
    skip_positions: int
    source: ModelFigures
    artifacts: tuple[ArtifactFigures, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def names(self) -> list[str]:
        """What to call each artifact: its last name, or all of its path where two have the same."""
        short = [Path(one.path).name for one in self.artifacts]
        counts = Counter(short)
        return [name if counts[name] == 1 else one.path for name, one in zip(short, self.artifacts, strict=True)]

    def counted(self) -> str:
        """What all figures are means of, in one line."""
        skipped = f", the first {self.skip_positions} of each left out" if self.skip_positions else ""
        spread = "one standard error" if self.windows > 1 else "unknown from one window"
        return f"{self.text}: {self.positions:,} predictions in {self.windows} windows{skipped}; KL in nats, ± {spread}"

    def tables(self) -> list[Table]:
        """The figures as text: models, their distances from the source, and the noise floors of their engines."""
        source = self.source
        models: Table = [MODELS, (f"{Path(source.path).name} (source)", "reference", *source.cells(), "")]
        distances: Table = [("KL from the source", *DISTANCES)]
        floors: Table = [("noise floor", *DISTANCES)]
        for name, one in zip(self.names, self.artifacts, strict=True):
            models.append((name, one.engine, *one.cells(), one.perplexity_ratio.in_words()))
            distances.append((name, *one.from_source.cells()))
            if one.weights_alone is not None and one.floor is not None:
                distances.append(("  in the reference", *one.weights_alone.cells()))
                floors.append((name, *one.floor.cells()))
        return [models, distances, *([floors] if floors[1:] else [])]

    def to_json(self) -> dict[str, Any]:
        """A JSON object: every field; NaN becomes null."""
        data: dict[str, Any] = plain(asdict(self))  # type: ignore[assignment]
        return data
