"""Quantization runs that are stopped after some of their steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from quantkit.artifacts.journal import KEY, Journal
from quantkit.errors import Interrupted
from quantkit.models.checkpoint import Checkpoint
from tests.support.killed_runs import BLOCKS, quantize

STEPS = ["samples", *(f"block-{layer:05}" for layer in range(BLOCKS))]


@contextmanager
def stopping(steps: int, error: type[BaseException]) -> Iterator[None]:
    """Raise `error` in a run once so many steps are kept."""
    keep = Journal.keep

    def kept(journal: Journal, name: str, data: bytes) -> None:
        keep(journal, name, data)
        if name == STEPS[steps - 1]:
            raise error("stop")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "keep", kept)
        yield


def stop(
    model: Path | Checkpoint, out: Path, steps: int, error: type[BaseException] = KeyboardInterrupt, **options: object
) -> Exception:
    """A run that ends with `error` once so many steps are kept."""
    with stopping(steps, error), pytest.raises(Interrupted if error is KeyboardInterrupt else error) as failure:
        quantize(model, out, **options)  # type: ignore[arg-type]
    assert [path.name for path in out.parent.iterdir()] == [".out.quantkit-work"]
    assert sorted(path.name for path in work(out).iterdir()) == sorted([KEY, *STEPS[:steps]])
    return failure.value  # type: ignore[no-any-return]


def work(out: Path) -> Path:
    return out.with_name(f".{out.name}.quantkit-work")
