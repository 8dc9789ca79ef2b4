"""What numba makes of the searches gives the bits that numpy's way gives."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from quantkit.exporters.gguf.reference import searches
from quantkit.exporters.gguf.reference.arithmetic import sub_blocks
from quantkit.exporters.gguf.reference.searches import OffsetSearch
from tests.support.gguf_rows import rows_of_every_kind

needs_numba = pytest.mark.skipif(
    importlib.util.find_spec("numba") is None, reason="needs numba: pip install 'quantkit[fast]'"
)
OFFSET_SEARCHES = [
    (OffsetSearch(15, -1, 0.1, 20), 32),
    (OffsetSearch(31, -0.5, 0.1, 15), 32),
    (OffsetSearch(3, -0.5, 0.1, 15, absolute=True), 16),
    (OffsetSearch(3, -0.9, 0.05, 36, weighted=True), 16),
]


Found = tuple[np.ndarray, ...]


def both(search: Callable[[], Found]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What numba and numpy find, as bits."""
    with np.errstate(all="ignore"):
        assert searches.compiled() is not None
        fast = search()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(searches, "compiled", lambda: None)
            slow = search()
    return zip(bits(fast), bits(slow), strict=True)


def bits(arrays: Found) -> list[np.ndarray]:
    return [array.view(np.uint32) if array.dtype == np.float32 else array for array in arrays]


@needs_numba
@pytest.mark.parametrize(("search", "run"), OFFSET_SEARCHES)
def test_scales_and_minimums_are_numpys(search, run) -> None:
    for kind, values in rows_of_every_kind(40, 512).items():
        x = sub_blocks(values, run)
        for w in (np.abs(x), x * x + np.float32(1e-3), np.zeros_like(x)):
            for fast, slow in both(lambda: search.run(x, w)):  # noqa: B023 - now
                assert np.array_equal(fast, slow), kind


@needs_numba
@pytest.mark.parametrize("half", [4, 8, 16, 32])
def test_scales_about_zero_are_numpys(half) -> None:
    for kind, values in rows_of_every_kind(40, 512).items():
        x = sub_blocks(values, 16)
        for w in (np.abs(x), x * x, np.zeros_like(x)):
            for fast, slow in both(lambda: searches.symmetric_search(x, w, half)):  # noqa: B023 - now
                assert np.array_equal(fast, slow), kind


def test_numpy_alone_will_do(monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    searches.compiled.cache_clear()
    assert searches.compiled() is None
    searches.compiled.cache_clear()
