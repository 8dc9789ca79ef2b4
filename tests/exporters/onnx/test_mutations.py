"""Hundreds of files that were damaged anywhere: each is refused in a line, or harmless. Codes and scales are numbers
that nothing but the manifest's digests can tell from others.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from quantkit import registry
from quantkit.errors import QuantkitError
from quantkit.models.checkpoint import Checkpoint
from quantkit.tensors.views import QuantizedView
from tests.support.opened import opened_paths

EXPORTER = registry.exporter("onnx")
MUTANTS = 150


def damaged(data: bytes, random: Random) -> bytes:
    """One to three bytes changed, left out, repeated or put in; or the end is cut off."""
    changed = bytearray(data)
    if random.random() < 0.1:
        return bytes(changed[: random.randrange(len(changed))])
    for _ in range(random.randint(1, 3)):
        place = random.randrange(len(changed))
        run = random.choice((1, 1, 2, 8, 64))
        kind = random.randrange(4)
        if kind == 0:
            changed[place] ^= 1 << random.randrange(8)
        elif kind == 1:
            del changed[place : place + run]
        elif kind == 2:
            changed[place:place] = changed[place : place + run]
        else:
            changed[place:place] = random.randbytes(run)
    return bytes(changed)


def same(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether two checkpoints are the same model, down to every weight."""
    if one.spec != other.spec:
        return False
    for a, b in zip(one.weights.values(), other.weights.values(), strict=True):
        if isinstance(a, QuantizedView) and isinstance(b, QuantizedView):
            if a.read().numbers_digest() != b.read().numbers_digest():
                return False
        elif isinstance(a, QuantizedView) or isinstance(b, QuantizedView) or a.read().tobytes() != b.read().tobytes():
            return False
    return True


@pytest.mark.parametrize("name", ["model.onnx", "genai_config.json", "config.json", "model.onnx.data"])
def test_a_damaged_file_is_refused_or_harmless(
    name: str, good: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = EXPORTER.read(good)
    data = (folder / name).read_bytes()
    paths = opened_paths(monkeypatch)
    refused = 0
    for number in range(MUTANTS):
        (folder / name).write_bytes(damaged(data, Random(f"{name} {number}")))
        try:
            found = EXPORTER.read(folder)
            unchanged = same(original, found)
        except QuantkitError as error:
            refused += 1
            assert str(error).isprintable()
            continue
        if name in ("model.onnx", "genai_config.json"):
            assert unchanged, number
    assert refused > MUTANTS // 3
    assert all(Path(path).parent in (folder, good) for path in paths)
