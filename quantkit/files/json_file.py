"""JSON from strangers, strictly.

Python's own reader keeps the last of two equal keys, takes NaN and lone surrogates, and converts integers of any
length; other readers differ, and two readers that differ see two models in one file. Everything doubtful is refused.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

from quantkit.errors import MalformedFile
from quantkit.files.source_file import SourceFile

MAX_DEPTH = 16
MAX_DIGITS = 40
"""Digits of an integer: enough for every 64-bit value, few enough to convert at once. Ranges are checked by users."""

_UTF8_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")


def read_json(path: Path, *, limit: int, depth: int = MAX_DEPTH) -> dict[str, Any]:
    """Read the JSON object in `path`.

    Args:
        path: a regular file, links are followed.
        limit: most bytes that the file may hold; a larger one is refused unread.
        depth: most objects and arrays inside each other.

    Raises:
        MalformedFile: anything but one strict JSON object.
        IncompleteCheckpoint, UnsafePath, ReadFailed, SourceChanged: see `SourceFile`.
    """
    return parse_json(SourceFile.open(path).read_all(limit), str(path), depth=depth)


def parse_json(data: bytes, where: str, *, depth: int = MAX_DEPTH) -> dict[str, Any]:
    """Parse one JSON object from UTF-8 with or without a byte order mark; `where` begins every message.

    Raises:
        MalformedFile: not UTF-8, not JSON, not an object, a key twice, NaN, infinity or a number that overflows, a
            lone surrogate, an integer of more than `MAX_DIGITS` digits, or deeper than `depth`.
    """
    text = _decoded(data, where)
    if not text.strip():
        raise MalformedFile(f"{where} is empty")
    repeats: list[tuple[str, object]] = []

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
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
    if _SURROGATE_ESCAPE.search(data):
        _check_surrogates(value, where)
    return value


class _NumberError(ValueError):
    """Raised from the number hooks, which do not know the file's name."""


def _decoded(data: bytes, where: str) -> str:
    if data.startswith(_UTF16_BOMS):
        raise MalformedFile(f"{where} is UTF-16; it must be UTF-8")
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


def _check_surrogates(value: dict[str, Any], where: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise MalformedFile(f"{where}: a string holds half of a surrogate pair") from None


def _kind(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")
