"""tokenizer.json as it lies in a folder: its rules, its pieces, its merges.

Source: the serialization of the `tokenizers` package.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from quantkit.errors import MalformedFile
from quantkit.text.tokenizer_files import TOKENIZER_FILE, Files, object_of

MAX_IDS = 1 << 31


@dataclass(frozen=True, slots=True, eq=False)
class TokenizerJson:
    """What tokenizer.json says, without its long lists.

    rules: the file without `model.vocab` and `model.merges`. ids: piece to id. merges: int64 [N, 3], ids of the left
    part, the right part and the whole, in the order in which they are tried. names_bytes: whether the word "ByteLevel"
    stands in the file, by which transformers chooses a class.
    """

    rules: Mapping[str, Any]
    ids: Mapping[str, int]
    merges: np.ndarray
    names_bytes: bool

    @property
    def model(self) -> Mapping[str, Any]:
        """Settings of the model, without its lists."""
        settings: Mapping[str, Any] = self.rules.get("model") or {}
        return settings


def read_tokenizer_json(files: Files) -> TokenizerJson | None:
    """What tokenizer.json says; None where there is no such file.

    Raises:
        MalformedFile: not JSON, or lists that contradict each other.
    """
    return _parsed(files[TOKENIZER_FILE]()) if TOKENIZER_FILE in files else None


@lru_cache(maxsize=1)
def _parsed(data: bytes) -> TokenizerJson:
    """The last answer is kept: opening a folder, a plan and calibration ask for the same file."""
    rules = object_of(data, TOKENIZER_FILE)
    model = rules.get("model") or {}
    if not isinstance(model, dict):
        raise MalformedFile(f"{TOKENIZER_FILE}: model must be an object")
    vocab, merges = model.pop("vocab", None), model.pop("merges", None) or []
    byte_level = b'"ByteLevel"' in data
    if not isinstance(vocab, dict) or not all(type(index) is int and 0 <= index < MAX_IDS for index in vocab.values()):
        return TokenizerJson(rules, {}, np.zeros((0, 3), np.int64), byte_level)  # of a model that is not BPE
    if not isinstance(merges, list):
        raise MalformedFile(f"{TOKENIZER_FILE}: merges must be a list")
    triples = np.array([_merge(pair, vocab) for pair in merges], np.int64).reshape(-1, 3)
    return TokenizerJson(rules, vocab, triples, byte_level)


def _merge(pair: object, vocab: Mapping[str, int]) -> tuple[int, int, int]:
    parts = pair.split(" ") if isinstance(pair, str) else pair
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
        raise MalformedFile(f"{TOKENIZER_FILE}: {str(pair)[:80]!r} is not a merge of two pieces")
    left, right = parts
    try:
        return vocab[left], vocab[right], vocab[left + right]
    except KeyError as missing:
        raise MalformedFile(f"{TOKENIZER_FILE}: a merge needs {str(missing)[:80]}, which its vocab lacks") from None
