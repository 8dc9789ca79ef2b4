"""JSON that is damaged in its structure: it still parses, mostly, and says something else."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from random import Random
from typing import Any

from benchmarks.mutations.values import KEYS, RAW, STRINGS, TWIN, odd_value

Container = dict[str, Any] | list[Any]
Place = tuple[Container, Any]
"""An object or array, and a key or index in it."""

_DOWN = 0.75
"""How often the way to a place goes on where it can."""


def damaged(value: Any, random: Random) -> Any:
    """A copy of `value` with one to three changes."""
    root = {"": copy.deepcopy(value)}
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        random.choice(_CHANGES)(root, random)
    return root.get("", odd_value(random))


def written(value: Any) -> bytes:
    """`value` as JSON, with what only `values.RAW` and `values.TWIN` can say."""
    text = json.dumps(value, ensure_ascii=False)
    if TWIN in text:
        text = text.replace(f'{TWIN}"', '"')
    start = text.find(f'"{RAW}')
    while start >= 0:
        raw, end = json.decoder.scanstring(text, start + 1)  # type: ignore[attr-defined]
        raw = raw.removeprefix(RAW)
        text = text[:start] + raw + text[end:]
        start = text.find(f'"{RAW}', start + len(raw))
    return text.encode("utf-8", "surrogatepass")


def _place(root: Container, random: Random) -> Place:
    """Somewhere below `root`; the children of one container are equally likely, so that long lists do not take all."""
    container, key = root, ""
    while True:
        below = container[key]  # type: ignore[index]
        if not isinstance(below, (dict, list)) or not below or (container is not root and random.random() > _DOWN):
            return container, key
        container = below
        key = random.choice(list(below)) if isinstance(below, dict) else random.randrange(len(below))


def _replace(root: Container, random: Random) -> None:
    container, key = _place(root, random)
    container[key] = odd_value(random)


def _remove(root: Container, random: Random) -> None:
    container, key = _place(root, random)
    if container is not root:
        del container[key]


def _twin(root: Container, random: Random) -> None:
    """The same key again, or the same item."""
    container, key = _place(root, random)
    value = random.choice((container[key], odd_value(random)))
    if isinstance(container, dict):
        container[f"{key}{TWIN}"] = value
    else:
        container.insert(random.randint(0, len(container)), value)


def _rename(root: Container, random: Random) -> None:
    container, key = _place(root, random)
    if isinstance(container, dict) and container is not root:
        value = container.pop(key)
        container[random.choice((key.upper(), f"{key}x", f" {key}", key[:-1], random.choice(KEYS)))] = value


def _insert(root: Container, random: Random) -> None:
    container, _ = _place(root, random)
    if isinstance(container, dict):
        container[random.choice(KEYS)] = odd_value(random)
    else:
        container.insert(random.randint(0, len(container)), odd_value(random))


def _splice(root: Container, random: Random) -> None:
    """A value from one place stands in another, too."""
    source, key = _place(root, random)
    value = copy.deepcopy(source[key])
    container, other = _place(root, random)
    container[other] = value


def _swap(root: Container, random: Random) -> None:
    container, key = _place(root, random)
    other = random.choice(list(container)) if isinstance(container, dict) else random.randrange(len(container))
    container[key], container[other] = container[other], container[key]


def _nest(root: Container, random: Random) -> None:
    container, key = _place(root, random)
    value = container[key]
    container[key] = random.choice(([value], {"a": value}, [value, value], {str(key): value}, {"content": value}))


def _bend(root: Container, random: Random) -> None:
    """The value as another of its kind: a near number, a longer text, a list in another order or many times over."""
    container, key = _place(root, random)
    value = container[key]
    if isinstance(value, bool) or value is None:
        container[key] = random.choice((not value, 0, 1, str(value)))
    elif isinstance(value, (int, float)):
        container[key] = random.choice((value + 1, value - 1, -value, value * 2, value / 3, value * 10**6, str(value)))
    elif isinstance(value, str):
        container[key] = _bent(value, random)
    elif isinstance(value, list):
        container[key] = random.choice(
            (value[::-1], value * 3, value[:-1], value[1:], value * 200 if len(value) < 99 else [])
        )
    else:
        container[key] = random.choice((list(value), list(value.values()), dict(list(value.items())[::-1]), [value]))


def _bent(text: str, random: Random) -> str:
    cut, piece = random.randint(0, len(text)), random.choice([s for s in STRINGS if not s.startswith(RAW)])
    return random.choice(
        (text[:cut] + piece + text[cut:], text[:cut], text[cut:], text * 50, text.upper(), text[::-1], piece)
    )


_CHANGES: tuple[Callable[[Container, Random], None], ...] = (
    *(_replace, _replace, _replace, _bend, _bend, _remove, _remove, _insert, _twin, _rename, _splice, _swap, _nest),
)
