"""The block of YAML at the head of a model card, which hubs read: the few keys that are taken over, and our own.

Strangers' cards are read as text, line by line: one key at the margin, its value beside it or as a list below it.
Values are taken only where they look like what they should be; everything else in the block is passed over.
Source: huggingface_hub 2.4, `repocard.REGEX_YAML_BLOCK`, and the keys of `ModelCardData`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

MARK = "---"
LICENSE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
LICENSE_NAME = re.compile(r"[\w .+-]{1,80}")
LICENSE_LINK = re.compile(r"(https://[\w./%#?=&+-]{1,200}|[\w.-]{1,80})")
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z]{2,8})?")
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
"""OWNER/NAME on a hub."""
PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./+-]*")
"""Text that YAML reads as text as it stands, unless it is a word of `RESERVED`."""
RESERVED = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}
"""`no` is Norwegian, and false to YAML."""
_ENTRY = re.compile(r"([A-Za-z_]+):(.*)")
_COMMENT = re.compile(r"\s#.*$")


def read_front_matter(text: str) -> dict[str, tuple[str, ...]]:
    """Key to values of the block at the head of a card; empty where there is none, or where it does not end."""
    lines = text.removeprefix("\ufeff").lstrip().splitlines()
    if not lines or lines[0].strip() != MARK or MARK not in (line.rstrip() for line in lines[1:]):
        return {}
    found: dict[str, list[str]] = {}
    key = ""
    for line in lines[1:]:
        if line.rstrip() == MARK:
            break
        entry = _ENTRY.fullmatch(line)
        if entry is not None:
            key, value = entry[1], _COMMENT.sub("", entry[2]).strip()
            inside = value[1:-1].split(",") if value.startswith("[") and value.endswith("]") else [value]
            found[key] = [_unquoted(one) for one in inside if one.strip()]
        elif key and line.lstrip().startswith("- "):
            found[key].append(_unquoted(_COMMENT.sub("", line.lstrip()[2:])))
        elif line.strip() and not line.startswith((" ", "#")):
            key = ""
    return {key: tuple(values) for key, values in found.items()}


def fitting(values: Sequence[str], shape: re.Pattern[str]) -> tuple[str, ...]:
    """Those of `values` that are what `shape` says, in their order, each once."""
    return tuple(dict.fromkeys(value for value in values if shape.fullmatch(value)))


def front_matter(entries: Mapping[str, str | Sequence[str] | None]) -> str:
    """The block with these entries; those without a value are left out. One value a line, as hubs write it."""
    lines = [MARK]
    for key, value in entries.items():
        if isinstance(value, str):
            lines.append(f"{key}: {_scalar(value)}")
        elif value:
            lines += [f"{key}:", *(f"- {_scalar(one)}" for one in value)]
    return "\n".join([*lines, MARK]) + "\n"


def _unquoted(text: str) -> str:
    stripped = text.strip()
    quoted = len(stripped) > 1 and stripped[0] == stripped[-1] and stripped[0] in "'\""
    return stripped[1:-1] if quoted else stripped


def _scalar(value: str) -> str:
    """Quoted, as JSON, which YAML reads alike, wherever YAML might not read it as that text."""
    return value if PLAIN.fullmatch(value) and value.lower() not in RESERVED else json.dumps(value)
