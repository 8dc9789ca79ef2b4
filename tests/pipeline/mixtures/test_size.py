"""What a user may say about the size of an artifact."""

from __future__ import annotations

import pytest

from quantkit.errors import BadOption
from quantkit.pipeline.mixtures.size import TargetSize


def test_a_size_is_what_it_says() -> None:
    size = TargetSize(nbytes=300_000_000)
    assert size.budget(10) == 300_000_000
    assert size.to_json() == {"bytes": 300_000_000}


def test_bits_are_of_all_weights() -> None:
    assert TargetSize(bits_per_weight=4.5).budget(1001) == 563  # 563.06


@pytest.mark.parametrize(
    ("nbytes", "bits"),
    [(0, None), (-1, None), (5, 4.0), (None, None)]
    + [(None, bits) for bits in (0.0, -1.0, 33.0, float("nan"), float("inf"))],
)
def test_what_is_no_size_is_refused(nbytes: int | None, bits: float | None) -> None:
    with pytest.raises(BadOption):
        TargetSize(nbytes=nbytes, bits_per_weight=bits)
