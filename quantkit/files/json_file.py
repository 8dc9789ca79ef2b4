"""JSON from strangers, strictly.

Python's own reader keeps the last of two equal keys, takes NaN and lone surrogates, and converts integers of any
length; other readers differ, and two readers that differ see two models in one file. Everything doubtful is refused.

What a file takes in memory is estimated from its brackets, colons and commas before it is parsed: three bytes of text
can become an object of two hundred.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any

import numpy as np

from quantkit.errors import MalformedFile

MAX_DEPTH = 16
MAX_DIGITS = 40
"""Digits of an integer: enough for every 64-bit value, few enough to convert at once. Ranges are checked by users."""
MAX_FLOAT_CHARS = 400
"""Characters of a float; the longest that is the shortest spelling of its value has 24."""
MAX_MEMORY = 450_000_000
"""Bytes that a parsed file may take with its text: a tokenizer of 262,144 pieces and 520,000 merges
takes 420 MB by this estimate."""

_UTF8_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
_HIGH, _LOW = rb"\\u[dD][89abAB][0-9a-fA-F]{2}", rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_LONE_SURROGATE = re.compile(rb"%s(?!%s)|(?<!%s)%s" % (_HIGH, _LOW, _HIGH, _LOW))
_COSTS = {b"{": 96, b"[": 64, b":": 140, b",": 32, b'"': 24}
"""Bytes of memory that an object, an array, a pair, a further item and each end of a string take at most, or nearly."""
_WINDOW = 1 << 20
_QUOTE = ord('"')


def parse_json(data: bytes, where: str, *, depth: int = MAX_DEPTH) -> dict[str, Any]:
    """Parse one JSON object from UTF-8 with or without a byte order mark; `where` begins every message.

    Raises:
        MalformedFile: not UTF-8, not JSON, not an object, a key twice, NaN, infinity or a number that overflows, a
            lone surrogate, an integer of more than `MAX_DIGITS` digits, deeper than `depth`, or more than
            takes `MAX_MEMORY` bytes.
    """
    needed = _needed_memory(data)
    if needed > MAX_MEMORY:
        raise MalformedFile(
            f"{where} would take about {needed / 1e6:,.0f} MB of memory once parsed; the limit is "
            f"{MAX_MEMORY / 1e6:,.0f} MB"
        )
    text = _decoded(data, where)
    if not text.strip():
        raise MalformedFile(f"{where} is empty")
    repeats: list[tuple[str, object]] = []

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs) and not repeats:
            repeats.append((Counter(key for key, _ in pairs).most_common(1)[0][0], result))
        return result

    try:
        value = json.loads(
            text, object_pairs_hook=build, parse_int=_integer, parse_float=_float, parse_constant=_constant
        )
    except json.JSONDecodeError as error:
        raise MalformedFile(
            f"{where} is not JSON at line {error.lineno} column {error.colno}: {error.msg.lower()}"
        ) from None
    except RecursionError:
        raise MalformedFile(f"{where} is nested deeper than {depth}") from None
    except _NumberError as error:
        raise MalformedFile(f"{where}: {error}") from None
    if repeats:
        key, owner = repeats[0]
        raise MalformedFile(f"{where}: {key[:80]!r} stands twice{_place(value, owner)}")
    if not isinstance(value, dict):
        raise MalformedFile(f"{where} holds {_kind(value)} instead of an object")
    if _deeper(value, depth):
        raise MalformedFile(f"{where} is nested deeper than {depth}")
    if b"\\u" in data and _LONE_SURROGATE.search(data.replace(rb"\\", b"__")):
        raise MalformedFile(f"{where}: a string holds half of a surrogate pair")
    return value


class _NumberError(ValueError):
    """Raised from the number hooks, which do not know the file's name."""


def _needed_memory(data: bytes) -> int:
    """Estimated bytes of `data`, its text and what it is parsed to.

    Most files are well below the limit even when brackets and commas inside strings are taken for structure, so only
    others are looked at twice.
    """
    values = np.frombuffer(data, np.uint8)
    width = 1 if data.isascii() else 2 if values.max() < 0xF0 else 4
    characters = len(data) - (np.count_nonzero(values & 0xC0 == 0x80) if width > 1 else 0)
    text = len(data) + 2 * width * characters
    needed = text + sum(cost * data.count(mark) for mark, cost in _COSTS.items())
    return needed if needed <= MAX_MEMORY else text + _structure_cost(data)


def _structure_cost(data: bytes) -> int:
    """What the brackets, colons and commas of `data` cost that stand outside of strings; window by window."""
    costs = np.zeros(256, np.int64)
    for mark, cost in _COSTS.items():
        costs[ord(mark)] = cost if mark != b'"' else 2 * cost  # only the closing one is outside
    total, start, inside = 0, 0, False
    while start < len(data):
        window = data[start : start + _WINDOW]
        if (len(window) - len(window.rstrip(b"\\"))) % 2:  # an escape is not cut
            window = data[start : start + _WINDOW + 1]
        start += len(window)
        values = np.frombuffer(window.replace(b"\\\\", b"__").replace(b'\\"', b"__"), np.uint8)
        within = np.logical_xor.accumulate(values == _QUOTE) ^ inside
        total += int(costs[values[~within]].sum())
        inside = bool(within[-1])
    return total


def _decoded(data: bytes, where: str) -> str:
    if data.startswith(_UTF16_BOMS) or b"\0" in data[:2]:
        raise MalformedFile(f"{where} is UTF-16 or UTF-32; it must be UTF-8")
    data = data.removeprefix(_UTF8_BOM)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedFile(f"{where} is not UTF-8 at byte {error.start}") from None


def _integer(text: str) -> int | float:
    if len(text) > MAX_DIGITS:
        raise _NumberError(f"an integer has {len(text):,} digits")
    return -0.0 if text == "-0" else int(text)  # -0 is no count; strict readers take it for a float, too


def _float(text: str) -> float:
    if len(text) > MAX_FLOAT_CHARS:
        raise _NumberError(f"a number has {len(text):,} characters")
    value = float(text)
    if not math.isfinite(value):
        raise _NumberError(f"number {text[:40]} is out of range")
    return value


def _constant(text: str) -> float:
    raise _NumberError(f"{text} is not JSON")


def _deeper(value: dict[str, Any], depth: int) -> bool:
    """Whether more than `depth` objects and arrays lie inside each other; level by level, so without recursion."""
    level: list[Any] = [value]
    for _ in range(depth):
        items = (item for container in level for item in (container.values() if type(container) is dict else container))
        level = [item for item in items if type(item) is dict or type(item) is list]
    return bool(level)


def _place(value: object, wanted: object) -> str:
    """Spell under which key of the whole `value` the object `wanted` lies; empty at the top."""
    level = [(value, "")]
    while level:
        for container, key in level:
            if container is wanted:
                return f" in {key[:80]!r}" if key else ""
        level = [pair for container, key in level for pair in _children(container, key)]
    return ""


def _children(container: object, key: str) -> list[tuple[object, str]]:
    if isinstance(container, dict):
        return list(zip(container.values(), container.keys(), strict=True))
    return [(item, key) for item in container] if isinstance(container, list) else []


def _kind(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")
