"""The head of README.md between two lines `---`: the few shapes of YAML that model cards are made of.

    license: apache-2.0             a text, plain or in quotes; numbers and dates stay texts
    language: [en, zh]              a list in one line
    tags:                           a list in lines
    - minicpm

Whatever else stands there (objects, texts of several lines, anchors) is passed over with its key: no card ever makes a
model unreadable.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

MAX_BYTES = 64 << 10
MAX_ITEMS = 1000
"""Entries of a list that are kept."""
MAX_CHARACTERS = 1000
"""Of a text."""

Card = Mapping[str, str | Sequence[str]]

_KEY = re.compile(r"([A-Za-z_][\w-]{0,79}):(?:[ ]+(.*))?")
_ITEM = re.compile(r"[ ]*-(?:[ ]+(.*))?")
_QUOTED = re.compile(r"""'((?:[^']|'')*)'|"((?:[^"\\]|\\["\\/nt])*)\"""")
_PLAIN = re.compile(r"[^\s\[\]{},#&*!|>'\"%@`-][^\[\]{}\n]*|-[^\s\[\]{}][^\[\]{}\n]*")
_ESCAPES = {"n": "\n", "t": "\t"}
_OTHERS = ("yes", "no", "on", "off", "y", "n", "true", "false", "null")
"""Words that YAML takes for something else than a text."""
_NOTHING = ("", "~", "null", "Null", "NULL")


def read_front_matter(data: bytes) -> dict[str, str | list[str]]:
    """The texts and lists of texts at the head of a README.md; nothing where it has no head. Raises nothing."""
    lines = data[:MAX_BYTES].decode("utf-8", "replace").removeprefix("\ufeff").splitlines()
    if not lines or lines[0].rstrip() != "---" or "---" not in (line.rstrip() for line in lines[1:]):
        return {}
    end = next(number for number, line in enumerate(lines[1:], 1) if line.rstrip() == "---")
    card: dict[str, str | list[str]] = {}
    place = 1
    while place < end:
        key, place = _KEY.fullmatch(lines[place].rstrip()), place + 1
        below = []
        while place < end and not re.match(r"[A-Za-z_\"']", lines[place]):
            below.append(lines[place])
            place += 1
        value = _value(key[2] or "", below) if key else None
        if key and value is not None and key[1] not in card:
            card[key[1]] = value
    return card


def _value(text: str, below: Sequence[str]) -> str | list[str] | None:
    """The value of a key whose line has `text`, and below it `below`; None for what is passed over."""
    below = [line for line in below if line.strip() and not line.lstrip().startswith("#")]
    text = _without_comment(text)
    if below:
        return _items(below) if text in _NOTHING else None
    if text.startswith("[") and text.endswith("]"):
        inner = text[1:-1].strip()
        parts = [_scalar(part.strip()) for part in inner.split(",")] if inner else []
        return _whole(parts)
    return None if text in _NOTHING else _scalar(text)


def _items(lines: Sequence[str]) -> list[str] | None:
    found = [_ITEM.fullmatch(line.rstrip()) for line in lines]
    return _whole([_scalar(_without_comment(item[1] or "")) if item else None for item in found])


def _whole(parts: Sequence[str | None]) -> list[str] | None:
    """The list, where every part of it is a text; None where one is something else."""
    texts = [part for part in parts if part is not None]
    return texts[:MAX_ITEMS] if len(texts) == len(parts) else None


def _scalar(text: str) -> str | None:
    quoted = _QUOTED.fullmatch(text)
    if quoted and quoted[1] is not None:
        return quoted[1].replace("''", "'")[:MAX_CHARACTERS]
    if quoted:
        return re.sub(r"\\(.)", lambda found: _ESCAPES.get(found[1], found[1]), quoted[2])[:MAX_CHARACTERS]
    plain = _PLAIN.fullmatch(text) and not re.search(r":(\s|$)", text)
    return text[:MAX_CHARACTERS] if plain else None


def _without_comment(text: str) -> str:
    text = text.strip()
    if text.startswith(("'", '"')):
        found = _QUOTED.match(text)
        rest = text[found.end() :].strip() if found else ""
        return found[0] if found and (not rest or rest.startswith("#")) else text
    return re.sub(r"(^|\s)#.*", "", text).strip()


def front_matter_bytes(card: Card) -> bytes:
    """The head of a README.md that says `card`, in quotes wherever a text could be read as something else."""
    lines = ["---"]
    for key, value in card.items():
        if isinstance(value, str):
            lines.append(f"{key}: {_written(value)}")
        else:
            lines += [f"{key}:", *(f"- {_written(item)}" for item in value)]
    return ("\n".join([*lines, "---"]) + "\n").encode()


def _written(text: str) -> str:
    if re.fullmatch(r"[A-Za-z][\w./-]*", text) and text.lower() not in _OTHERS:
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{"".join(c if c.isprintable() or c == " " else " " for c in escaped)}"'
