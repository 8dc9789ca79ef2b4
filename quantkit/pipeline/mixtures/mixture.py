"""A mixture of types that loses least at a size: chosen by measured losses, on the bytes of the finished file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantkit.errors import BadOption
from quantkit.pipeline.mixtures.knapsack import Item, best_choice
from quantkit.pipeline.mixtures.size import TargetSize
from quantkit.tensors.block_options import Candidate, Candidates

HALVINGS = 24
"""Steps in which the bytes that are left to tensors are found."""
Groups = Sequence[tuple[str, ...]]
"""Names of weights that must be of one type; every weight is in one group."""
Chosen = Mapping[str, Candidate]
"""By weight name."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """What was chosen.

    chosen: by weight name. losses: what each loses, in nats per position. size: bytes of all files. weights: how many
    the model has. target: what was asked for.
    """

    chosen: Chosen
    losses: Mapping[str, float]
    size: int
    weights: int
    target: TargetSize

    @property
    def types(self) -> dict[str, str]:
        """The type of every weight."""
        return {name: candidate.type for name, candidate in self.chosen.items()}

    @property
    def loss(self) -> float:
        """KL that was predicted, in nats per position."""
        return sum(self.losses.values())

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "target": self.target.to_json(),
            "planned_size": self.size,
            "bits_per_weight": self.size * 8 / self.weights,
            "predicted_kl": self.loss,
            "counts": dict(Counter(self.types.values()).most_common()),
            "types": self.types,
            "losses": {name: float(f"{loss:.4g}") for name, loss in self.losses.items()},
        }


def choose(
    candidates: Candidates,
    losses: Mapping[str, Sequence[float]],
    groups: Groups,
    target: TargetSize,
    *,
    weights: int,
    size: Callable[[Chosen], int],
) -> Mixture:
    """The mixture of least loss of which the finished files take at most `target`.

    Args:
        candidates: by weight name.
        losses: of each of them, in order.
        groups: weights that must be alike.
        target: how large the files may be.
        weights: how many the model has.
        size: of the finished files with a choice, exact.

    Raises:
        BadOption: no mixture is that small; says how small the smallest is.
    """
    most = target.budget(weights)
    check_reachable(candidates, groups, target, weights=weights, size=size)
    items = [_items(group, candidates, losses) for group in groups]
    found = [choice for choice in _uniform(items) if size(choice[1]) <= most]
    least = sum(min(item.nbytes for _, item in group) for group in items)
    low, high = least, most - (size(_smallest(candidates, groups)) - least)
    budget = high  # headers tell more of a mixture than of what is alike: what they leave is found by halving
    for _ in range(HALVINGS):
        numbers = best_choice([[item for _, item in group] for group in items], budget)
        assert numbers is not None
        choice = _together([group[number] for group, number in zip(items, numbers, strict=True)])
        if size(choice[1]) <= most:
            found.append(choice)
            low = budget
        else:
            high = budget
        if high - low <= 1:
            break
        budget = (low + high) // 2
    _, chosen = min(found, key=lambda one: one[0])
    lost = {name: losses[name][candidates[name].index(chosen[name])] for name in candidates}
    return Mixture({name: chosen[name] for name in candidates}, lost, size(chosen), weights, target)


def _uniform(items: Sequence[Sequence[tuple[Chosen, Item]]]) -> Iterator[tuple[float, Chosen]]:
    """What all groups can be alike, and the smallest of every group."""
    yield _together([min(group, key=lambda one: one[1].nbytes) for group in items])
    for kind in dict.fromkeys(_type(choice) for choice, _ in items[0]):
        alike = [[one for one in group if _type(one[0]) == kind] for group in items]
        if all(alike):
            yield _together([group[0] for group in alike])


def _type(choice: Chosen) -> str:
    return next(iter(choice.values())).type


def _together(picked: Sequence[tuple[Chosen, Item]]) -> tuple[float, Chosen]:
    """The loss of one choice of every group, and all of it."""
    chosen = {name: candidate for choice, _ in picked for name, candidate in choice.items()}
    return sum(item.loss for _, item in picked), chosen


def sizes(candidates: Candidates, groups: Groups, size: Callable[[Chosen], int]) -> tuple[int, int]:
    """Bytes of the smallest and of the largest mixture there is."""
    return size(_smallest(candidates, groups)), size(_extreme(candidates, groups, max))


def check_reachable(
    candidates: Candidates, groups: Groups, target: TargetSize, *, weights: int, size: Callable[[Chosen], int]
) -> None:
    """Raise `BadOption` where even the smallest mixture is larger; before anything is measured."""
    least = size(_smallest(candidates, groups))
    if least > target.budget(weights):
        raise _too_small(least, target, weights)


def _too_small(least: int, target: TargetSize, weights: int) -> BadOption:
    return BadOption(
        f"no mixture of these types is as small as {target.budget(weights):,} bytes",
        hint=f"the smallest has {least:,} bytes: --target-size {least}, or --target-bpw {_above(least * 8 / weights)}",
    )


def _above(bits: float) -> str:
    """A number of three decimals that is not below `bits`."""
    return f"{bits + 0.0005:.3f}"


def _smallest(candidates: Candidates, groups: Groups) -> dict[str, Candidate]:
    return _extreme(candidates, groups, min)


def _extreme(candidates: Candidates, groups: Groups, by: Callable[..., Any]) -> dict[str, Candidate]:
    found: dict[str, Candidate] = {}
    for group in groups:
        found |= by(_choices(group, candidates), key=lambda one: sum(candidate.nbytes for candidate in one.values()))
    return found


def _choices(group: Sequence[str], candidates: Candidates) -> list[dict[str, Candidate]]:
    """The candidates that all weights of a group have, by their types."""
    first, *others = group
    found = []
    for candidate in candidates[first]:
        alike = [next((one for one in candidates[name] if one.type == candidate.type), None) for name in others]
        if all(one is not None for one in alike):
            found.append({first: candidate, **{name: one for name, one in zip(others, alike, strict=True) if one}})
    if not found:
        raise BadOption(f"{', '.join(group)} must be of one type, and have none in common", hint="allow more types")
    return found


def _items(
    group: Sequence[str], candidates: Candidates, losses: Mapping[str, Sequence[float]]
) -> Sequence[tuple[Chosen, Item]]:
    """Choices of a group with their bytes and losses."""
    return [
        (
            choice,
            Item(
                sum(candidate.nbytes for candidate in choice.values()),
                sum(losses[name][candidates[name].index(candidate)] for name, candidate in choice.items()),
            ),
        )
        for choice in _choices(group, candidates)
    ]
