"""The choice on the bytes of finished files."""

from __future__ import annotations

import numpy as np
import pytest

from quantkit.errors import BadOption
from quantkit.pipeline.mixtures.mixture import choose, sizes
from quantkit.pipeline.mixtures.size import TargetSize
from quantkit.tensors.block_options import Candidate

NAMES = tuple(f"w{i}" for i in range(6))
CANDIDATES = {
    name: tuple(Candidate(type=f"t{bits}", scheme=None, nbytes=bits * (10 + i)) for bits in (2, 4, 8))
    for i, name in enumerate(NAMES)
}
LOSSES = {name: tuple((1 + i) * 4.0**-bits for bits in (2, 4, 8)) for i, name in enumerate(NAMES)}
ALONE = [(name,) for name in NAMES]


def size(chosen) -> int:
    """A header that tells more the more types there are."""
    kinds = {candidate.type for candidate in chosen.values()}
    return 100 + 13 * len(kinds) + sum(candidate.nbytes for candidate in chosen.values())


def chosen_at(nbytes: int, groups=ALONE):
    return choose(CANDIDATES, LOSSES, groups, TargetSize(nbytes=nbytes), weights=100, size=size)


@pytest.mark.parametrize("nbytes", range(263, 760, 37))
def test_it_fits_and_more_bytes_never_lose_more(nbytes: int) -> None:
    found = chosen_at(nbytes)
    assert found.size == size(found.chosen) <= nbytes
    assert found.loss <= chosen_at(max(263, nbytes - 37)).loss
    assert found == chosen_at(nbytes)
    for other in range(3):  # nothing that is alike everywhere is better
        alike = {name: CANDIDATES[name][other] for name in NAMES}
        assert size(alike) > nbytes or sum(LOSSES[name][other] for name in NAMES) >= found.loss


def test_what_headers_leave_is_used() -> None:
    assert chosen_at(10_000).types == dict.fromkeys(NAMES, "t8")
    least, most = sizes(CANDIDATES, ALONE, size)
    assert chosen_at(most).size == most
    assert chosen_at(least).size == least
    with pytest.raises(BadOption, match="as small as"):
        chosen_at(least - 1)


def test_weights_of_a_group_are_alike() -> None:
    groups = [NAMES[:3], NAMES[3:]]
    for nbytes in np.arange(263, 760, 61):
        types = chosen_at(int(nbytes), groups).types
        assert all(len({types[name] for name in group}) == 1 for group in groups)


def test_the_manifest_tells_what_was_chosen() -> None:
    found = chosen_at(500).to_json()
    assert found["target"] == {"bytes": 500}
    assert sum(found["counts"].values()) == len(NAMES)
    assert found["predicted_kl"] == pytest.approx(sum(found["losses"].values()), rel=1e-3)
    assert found["bits_per_weight"] == found["planned_size"] * 8 / 100
