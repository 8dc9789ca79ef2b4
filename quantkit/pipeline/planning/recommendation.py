"""Of several planned containers, which is the smallest and which the fastest in each engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from quantkit import registry
from quantkit.pipeline.planning.target import Target

USUAL_WIDTH = 4
"""Bits that most kernels want."""


@dataclass(frozen=True, slots=True)
class Recommendation:
    """Containers that an engine takes as they are, in the words of `--to`.

    fastest: the smallest of those that its kernels take without a remark: reading the weights is what a token costs,
    and remarks tell of what costs more.
    """

    engine: str
    smallest: str
    fastest: str


def every_target() -> Iterator[str]:
    """Every container in every type, in codes as narrow as it has them and of `USUAL_WIDTH`, for `parse_target`."""
    for exporter in registry.containers():
        for kind in exporter.types or ("",):
            yield f"{exporter.name}:{kind}".rstrip(":")
            if len(exporter.widths) > 1 and USUAL_WIDTH in exporter.widths:
                yield f"{exporter.name}:{kind}:{USUAL_WIDTH}"


def recommended(targets: Sequence[Target]) -> tuple[Recommendation, ...]:
    """One for every engine that takes at least one of `targets`, by the engines' names."""
    taken: dict[str, list[tuple[bool, int, str]]] = {}
    for target in targets:
        for verdict in target.kernels if target.size is not None else ():
            if verdict.refusal is None:
                key = (verdict.remark is not None, target.size or 0, target.label)
                taken.setdefault(verdict.engine, []).append(key)
    return tuple(
        Recommendation(engine, smallest=min(found, key=lambda key: key[1:])[2], fastest=min(found)[2])
        for engine, found in sorted(taken.items())
    )
