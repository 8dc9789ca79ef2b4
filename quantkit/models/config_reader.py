"""Typed look-ups in `config.json`: what is found is of the right kind and in range, or refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantkit.errors import BadConfig


def shown(value: object, limit: int = 80) -> str:
    """A value of a config for a message, cut at `limit` characters."""
    try:
        return repr(value)[:limit]
    except ValueError:  # Python spells no integers of thousands of digits
        return f"{type(value).__name__} with an integer of thousands of digits"


class ConfigReader:
    """Typed look-ups in a JSON object; every refusal names the key, the rule and the value found."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self.config = config
        self.where = where

    def _refuse(self, key: str, rule: str) -> BadConfig:
        value = self.config.get(key)
        return BadConfig(f"{self.where}: {key} must be {rule}, is {shown(value) if value is not None else 'missing'}")

    def integer(self, key: str, low: int, high: int, *, default: int | None = None) -> int:
        """An integer from `low` to `high`."""
        value = self.config.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self._refuse(key, f"an integer from {low} to {high}")
        return value

    def number(self, key: str, low: float = 1e-9, high: float = 1e9, *, default: float | None = None) -> float:
        """A number from `low`, which is positive, to `high`; the bounds keep float32 arithmetic far from its ends."""
        value = self.config.get(key)
        value = default if value is None else value
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
            raise self._refuse(key, f"a positive finite number from {low:g} to {high:g}")
        return float(value)

    def boolean(self, key: str, *, default: bool | None = None) -> bool:
        """True or false; default: None where the config must say it."""
        value = self.config.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self._refuse(key, "true or false")
        return value

    def token(self, key: str, vocab: int, *, default: int | None) -> int | None:
        """A token id, the first where there are several; None for null, -1 and an empty list.

        default: the id that the family's own config class takes where the key is missing.
        """
        ids = self.tokens(key, vocab, default=default)
        return ids[0] if ids else None

    def padding(self, vocab: int) -> int | None:
        """pad_token_id: it fills batches and changes no text, so an id beyond the vocabulary is none as well."""
        value = self.config.get("pad_token_id")
        return None if type(value) is int and value >= vocab else self.token("pad_token_id", vocab, default=None)

    def tokens(self, key: str, vocab: int, *, default: int | None) -> tuple[int, ...]:
        """Token ids, each once: of one or of a list. Null is none, and so is -1, which many configs say for it."""
        value = self.config.get(key, default)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        good = [i for i in ids if isinstance(i, int) and not isinstance(i, bool) and -1 <= i < vocab]
        if len(good) != len(ids):
            raise self._refuse(key, f"a token id, or a list of them, below vocab_size {vocab}")
        return tuple(dict.fromkeys(i for i in good if i != -1))

    def factors(self, key: str, length: int, low: float, high: float) -> tuple[float, ...]:
        """Numbers from `low`, which is positive, to `high`, `length` of them."""
        value = self.config.get(key)
        rule = f"a list of {length} positive numbers (half of head_dim) from {low:g} to {high:g}"
        if not isinstance(value, list) or len(value) != length:
            raise self._refuse(key, rule)
        for item in value:
            if not isinstance(item, (int, float)) or isinstance(item, bool) or not low <= item <= high:
                raise self._refuse(key, rule)
        return tuple(float(item) for item in value)
