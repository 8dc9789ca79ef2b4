"""What a user may say about the size of an artifact."""

from __future__ import annotations

import pytest

from quantkit.errors import BadOption
from quantkit.pipeline.mixtures.size import TargetSize


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("300MB", 300_000_000), ("1.5GiB", 3 << 29), ("12345", 12_345), ("2 kib", 2048), ("7b", 7), ("0.5mb", 500_000)],
)
def test_sizes(text: str, nbytes: int) -> None:
    size = TargetSize.parse(text, None)
    assert size is not None
    assert size.budget(10) == nbytes
    assert size.to_json() == {"bytes": nbytes}


def test_bits_are_of_all_weights() -> None:
    size = TargetSize.parse(None, 4.5)
    assert size is not None
    assert size.budget(1001) == 563  # 563.06
    assert TargetSize.parse(None, None) is None


@pytest.mark.parametrize(
    ("text", "bits"),
    [("many", None), ("3 PB", None), ("-1", None), ("0", None), ("1e9", None), ("٣MB", None), ("5MB", 4.0)]
    + [(None, bits) for bits in (0.0, -1.0, 33.0, float("nan"), float("inf"))],
)
def test_what_is_no_size_is_refused(text: str | None, bits: float | None) -> None:
    with pytest.raises(BadOption):
        TargetSize.parse(text, bits)
