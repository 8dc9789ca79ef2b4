"""A text in chunks of equal length, as llama.cpp's tools take it: one row of tokens, cut wherever it comes.

Every chunk begins with the model's first token, in place of the token that stood there. What is left over at the end is
left out. Source: `compute_imatrix` in llama.cpp's `tools/imatrix/imatrix.cpp`.
"""

from __future__ import annotations

import numpy as np

from quantkit.calibration.text_file import TextFile
from quantkit.errors import BadOption
from quantkit.text.tokenizer import Tokenizer


def text_chunks(tokenizer: Tokenizer, file: TextFile, *, length: int, most: int | None = None) -> list[np.ndarray]:
    """The first chunks of a text, int64 [length] each; at most `most` of them.

    Records follow each other without anything between. Each is split by itself, and so is every portion of a plain
    text (`quantkit.calibration.text_file.PORTION_CHARS`).

    Raises:
        BadOption: less text than one chunk.
        What `TextFile.texts` raises.
    """
    beginning = tokenizer.beginning
    ids = list(beginning)
    for record in file.records:
        if most is not None and len(ids) >= most * length:
            break
        for text in file.texts(tokenizer, [record]):
            ids += tokenizer.encode(text, add_bos=False)
    count = len(ids) // length if most is None else min(most, len(ids) // length)
    if not count:
        raise BadOption(
            f"{file.path}: its {len(ids) - len(beginning):,} tokens are less than one chunk of {length:,}",
            hint="give a longer text, or a smaller --length",
        )
    rows = np.array(ids[: count * length], np.int64).reshape(count, length)
    if beginning:
        rows[:, 0] = beginning[0]
    return list(rows)
