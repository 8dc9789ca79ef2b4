"""What the real model is measured on: token sequences of text that nobody here wrote for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from golden.corpus import read_modules
from quantkit.text.tokenizer import Tokenizer

LENGTH = 512
PROGRAM_TEXT = "program text"
"""The interpreter's own standard library: every machine that runs this has it."""


def sequences(tokenizer: Tokenizer, documents: Iterator[str] | Sequence[str], count: int) -> list[np.ndarray]:
    """`count` windows of LENGTH tokens, spread evenly over all documents in a row; int64 [LENGTH] each."""
    ids = np.array([token for text in documents for token in tokenizer.encode(text, add_bos=False)], np.int64)
    windows = len(ids) // LENGTH
    count = min(count, windows)
    starts = [index * windows // count * LENGTH for index in range(count)]
    return [ids[start : start + LENGTH] for start in starts]


def measured_texts(tokenizer: Tokenizer, files: Sequence[Path], count: int) -> dict[str, list[np.ndarray]]:
    """Name to sequences: each of `files`, then the standard library (every eighth module: the rest adds only time)."""
    texts = {file.name: sequences(tokenizer, [file.read_text(encoding="utf-8")], count) for file in files}
    modules = [text for _, text in read_modules()]
    return {**texts, PROGRAM_TEXT: sequences(tokenizer, modules[::8], count)}
