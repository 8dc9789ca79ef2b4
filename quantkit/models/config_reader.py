"""Typed look-ups in `config.json`: what is found is of the right kind and in range, or refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantkit.errors import BadConfig


class ConfigReader:
    """Typed look-ups in a JSON object; every refusal names the key, the rule and the value found."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self.config = config
        self.where = where

    def _refuse(self, key: str, rule: str) -> BadConfig:
        value = self.config.get(key)
        return BadConfig(
            f"{self.where}: {key} must be {rule}, is {repr(value)[:80] if value is not None else 'missing'}"
        )

    def integer(self, key: str, low: int, high: int, *, default: int | None = None) -> int:
        """An integer from `low` to `high`."""
        value = self.config.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self._refuse(key, f"an integer from {low} to {high}")
        return value

    def number(self, key: str, *, default: float | None = None) -> float:
        """A positive finite number."""
        value = self.config.get(key)
        value = default if value is None else value
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1e30:
            raise self._refuse(key, "a positive finite number")
        return float(value)

    def boolean(self, key: str, *, default: bool) -> bool:
        """True or false."""
        value = self.config.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self._refuse(key, "true or false")
        return value

    def token(self, key: str, vocab: int, *, default: int | None) -> int | None:
        """A token id, the first where there are several; None where there is none and no default, or where it is -1."""
        if self.config.get(key) == -1:
            return None
        return None if self.config.get(key) is None and default is None else self.tokens(key, vocab, default=default)[0]

    def padding(self, vocab: int) -> int | None:
        """pad_token_id: it fills batches and changes no text, so an id beyond the vocabulary is none as well."""
        value = self.config.get("pad_token_id")
        return None if type(value) is int and value >= vocab else self.token("pad_token_id", vocab, default=None)

    def tokens(self, key: str, vocab: int, *, default: int | None) -> tuple[int, ...]:
        """Token ids, of which there is at least one."""
        value = self.config.get(key)
        value = default if value is None else value
        ids = value if isinstance(value, list) else [value]
        good = [i for i in ids if isinstance(i, int) and not isinstance(i, bool) and 0 <= i < vocab]
        if not ids or len(good) != len(ids):
            raise self._refuse(key, f"a token id, or a list of them, below vocab_size {vocab}")
        return tuple(good)

    def factors(self, key: str, length: int) -> tuple[float, ...]:
        """Positive numbers, `length` of them."""
        value = self.config.get(key)
        rule = f"a list of {length} positive numbers (half of head_dim)"
        if not isinstance(value, list) or len(value) != length:
            raise self._refuse(key, rule)
        for item in value:
            if not isinstance(item, (int, float)) or isinstance(item, bool) or not 0 < item < 1e9:
                raise self._refuse(key, rule)
        return tuple(float(item) for item in value)
