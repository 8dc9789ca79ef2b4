"""Recipes whose numbers, keys or lines are beyond reason are refused in one line and at once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from quantkit.errors import QuantkitError
from quantkit.pipeline.recipe import MAX_BYTES, Recipe

RULE = '[[rule]]\nrole = "down"\n'
BAD = {
    "5,000 digits": f"{RULE}bits = {'9' * 5000}",
    "900 digits": f"{RULE}bits = {'9' * 900}",
    "hexadecimal": f"{RULE}bits = 0x{'f' * 900}",
    "octal": f"{RULE}group_size = 0o{'7' * 900}",
    "binary": f"{RULE}group_size = 0b{'1' * 900}",
    "a bit too many": f"{RULE}group_size = 9223372036854775808",
    "negative": f"{RULE}bits = -9223372036854775809",
    "in a list": f"{RULE[:8]}\nrole = [0x{'f' * 900}]\nbits = 4",
    "as a rule": f"rule = 0x{'f' * 900}",
    "as an unknown key": f"x = 0x{'f' * 900}",
    "as a match": f"[[rule]]\nmatch = 0x{'f' * 900}\nbits = 4",
    "infinity": f"{RULE}bits = inf",
    "not a number": f"{RULE}bits = nan",
    "a date": f"{RULE}bits = 1979-05-27",
    "dots": ".".join(["a"] * 20_000) + " = 1",
    "many dots": "\n".join(f"{'.'.join(['a'] * 480)}.b{i} = 1" for i in range(60)),
    "deep tables": f"[{'.'.join(['a'] * 490)}]\nx = 1",
    "deep lists": "x = " + "[\n" * 9000,
    "large": "#" * 100 + "\n" * MAX_BYTES,
    "a long key": f"{RULE}{'k' * 950} = 1",
}


@pytest.mark.parametrize("name", BAD)
def test_a_recipe_beyond_reason_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "mixed.toml"
    path.write_text(BAD[name])
    start = time.process_time()
    with pytest.raises(QuantkitError, match=r"mixed\.toml"):
        Recipe.read(path)
    assert time.process_time() - start < 2
