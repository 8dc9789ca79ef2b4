"""A token trigram with interpolated Kneser-Ney smoothing: what the golden model must clearly beat.

Chen and Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling" (1998): interpolated, with
one discount per order, D = n1 / (n1 + 2 n2). Counts are sorted arrays of packed token ids, looked up by
bisection, so that millions of tokens take seconds.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Table:
    """Counts of packed n-grams, `keys` sorted and distinct."""

    keys: Ints
    counts: Floats

    @classmethod
    def count(cls, items: Ints) -> "Table":
        """Count equal items."""
        keys, counts = np.unique(items, return_counts=True)
        return cls(keys, counts.astype(np.float64))

    def sum_by(self, context: Ints) -> "Table":
        """Add up the counts of the entries that have the same context."""
        keys, inverse = np.unique(context, return_inverse=True)
        return Table(keys, np.bincount(inverse, weights=self.counts).astype(np.float64))

    def look_up(self, items: Ints) -> Floats:
        """Return the count of each item, 0 where it was never seen."""
        at = np.minimum(np.searchsorted(self.keys, items), len(self.keys) - 1)
        return np.where(self.keys[at] == items, self.counts[at], np.float64(0))


def discount_of(counts: Floats) -> float:
    """Return the absolute discount that the counts of counts suggest."""
    once, twice = float(np.sum(counts == 1)), float(np.sum(counts == 2))
    return once / (once + 2 * twice) if once else 0.5


class Level:
    """One order of the model: counts of `context, token`, interpolated with a lower order."""

    def __init__(self, table: Table, vocab_size: int) -> None:
        """Prepare totals and numbers of distinct successors of every context."""
        contexts = table.keys // vocab_size
        self.table = table
        self.discount = discount_of(table.counts)
        self.totals = table.sum_by(contexts)
        self.successors = Table.count(contexts)

    def probability(self, keys: Ints, contexts: Ints, lower: Floats) -> Floats:
        """Return the probability of each packed n-gram's last token, given the lower order's answer."""
        total = self.totals.look_up(contexts)
        kept = np.maximum(self.table.look_up(keys) - self.discount, 0.0)
        spread = self.discount * self.successors.look_up(contexts)
        safe = np.where(total > 0, total, 1.0)
        return np.where(total > 0, (kept + spread * lower) / safe, lower)


class Trigram:
    """Interpolated Kneser-Ney over a token stream."""

    def __init__(self, tokens: Ints, vocab_size: int) -> None:
        """Count the stream. Lower orders count distinct left contexts, not occurrences."""
        self.size = vocab_size
        first, second, third = tokens[:-2], tokens[1:-1], tokens[2:]
        triples = Table.count((first * vocab_size + second) * vocab_size + third)
        pairs = Table.count(triples.keys % (vocab_size * vocab_size))
        singles = Table.count(pairs.keys % vocab_size)
        self.levels = [Level(table, vocab_size) for table in (singles, pairs, triples)]

    def probabilities(self, tokens: Ints) -> Floats:
        """Return the probability of every token from the third on, given the two before it."""
        first, second, third = tokens[:-2], tokens[1:-1], tokens[2:]
        pair = second * self.size + third
        answer = np.full(len(third), 1.0 / self.size)
        answer = self.levels[0].probability(third, np.zeros_like(third), answer)
        answer = self.levels[1].probability(pair, second, answer)
        context = first * self.size + second
        return self.levels[2].probability(context * self.size + third, context, answer)


def trigram_perplexity(train: Ints, held_out: Ints, vocab_size: int) -> float:
    """Fit on `train`; return the perplexity per token of `held_out` (all but its first two tokens)."""
    probabilities = Trigram(train, vocab_size).probabilities(held_out)
    return float(np.exp(-np.mean(np.log(probabilities))))
