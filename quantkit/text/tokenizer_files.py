"""The small files around a tokenizer: their names, and strict reading of those that are JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from quantkit.errors import MalformedFile
from quantkit.files.json_file import parse_json

MODEL_FILE = "tokenizer.model"
TOKENIZER_FILE = "tokenizer.json"
ADDED_FILE = "added_tokens.json"
CONFIG_FILE = "tokenizer_config.json"
SPECIALS_FILE = "special_tokens_map.json"
MAX_JSON_BYTES = 1 << 26

Files = Mapping[str, Callable[[], bytes]]
"""Name to a thunk that reads the bytes: `Checkpoint.files`."""


def read_object(files: Files, name: str) -> dict[str, Any]:
    """The JSON object in file `name`, empty where there is no such file.

    Raises:
        MalformedFile: too long, or not a strict JSON object.
    """
    return object_of(files[name](), name) if name in files else {}


def object_of(data: bytes, name: str) -> dict[str, Any]:
    """The JSON object that `data`, the bytes of file `name`, holds; raises as `read_object`."""
    if len(data) > MAX_JSON_BYTES:
        raise MalformedFile(f"{name} has {len(data):,} bytes; the limit for such a file is {MAX_JSON_BYTES:,}")
    return parse_json(data, name)


def token_text(value: object, where: str) -> str | None:
    """The text of a token that is given as a string or as an object with `content`; None for null.

    Raises:
        MalformedFile: anything else; `where` names file and key.
    """
    if value is None:
        return None
    text = value.get("content") if isinstance(value, Mapping) else value
    if not isinstance(text, str):
        raise MalformedFile(f"{where} must be a string, is {str(value)[:80]!r}")
    return text
