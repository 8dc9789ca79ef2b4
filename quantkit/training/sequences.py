"""Text as rows of tokens to train on: whole files, packed, in an order that a seed decides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from quantkit.calibration.text_file import PORTION_CHARS, TextFile, read_text_file
from quantkit.errors import BadOption
from quantkit.models.checkpoint import Checkpoint
from quantkit.text.tokenizer import Tokenizer, find_tokenizer
from quantkit.training.options import TrainingOptions

MAX_FILE_BYTES = 4 << 30
HELD_OUT_SHARE = 16
"""At most one row in so many is held out."""
PROBE_CHARS = 4096
"""Of every file, to see whether two tokenizers agree."""
SHARED = "a teacher must share the model's vocabulary"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSource:
    """A file that was trained on, as the manifest records it; digest: SHA-256 of its bytes."""

    name: str
    kind: str
    digest: str
    tokens: int


class TrainingText:
    """Rows int64 [rows, length] that begin as every text does (BOS), each token of the text behind one of them.

    `held_out` are kept out of training, evenly spread over the text.
    """

    def __init__(self, rows: np.ndarray, held_out: int, seed: int, sources: Sequence[TextSource]) -> None:
        taken = min(held_out, len(rows) // HELD_OUT_SHARE)
        apart = [(2 * i + 1) * len(rows) // (2 * taken) for i in range(taken)]
        self.sources = tuple(sources)
        self.held_out: np.ndarray = rows[apart].astype(np.int64)
        self._rows = np.delete(rows, apart, axis=0)
        self._seed = seed
        self._order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, start: int, count: int) -> np.ndarray:
        """Rows `start` to `start + count` of an endless sequence: all rows in a new order, again and again."""
        places = range(start, start + count)
        return np.stack([self._rows[self._at(place)] for place in places]).astype(np.int64)

    def report(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "sources": [asdict(source) for source in self.sources],
            "rows": len(self._rows),
            "length": self._rows.shape[1],
            "held_out": len(self.held_out),
        }

    def _at(self, place: int) -> int:
        epoch, index = divmod(place, len(self._rows))
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self._seed, epoch]).permutation(len(self._rows))
        return int(self._order[1][index])


def training_text(model: Checkpoint, teacher: Checkpoint, options: TrainingOptions) -> TrainingText:
    """The files of `options` as the tokenizer of `model` reads them; documents end with the model's first end token.

    Raises:
        BadOption: sequences longer than the model's or the teacher's context, a teacher with another vocabulary, a
            model without a usable tokenizer, or text that is shorter than one sequence.
        What `find_tokenizer` and `read_text_file` raise.
    """
    _check_sizes(model, teacher)
    for who, one in (("model", model), ("teacher", teacher)):
        if options.length > one.spec.max_position_embeddings:
            raise BadOption(
                f"training sequences of {options.length:,} tokens exceed the {who}'s context of "
                f"{one.spec.max_position_embeddings:,}"
            )
    tokenizer = find_tokenizer(model)
    if isinstance(tokenizer, str):
        raise BadOption(f"{options.files[0]}: {tokenizer}, so no text can be read", hint="add the tokenizer's files")
    end = list(model.spec.eos_token_ids[:1])
    documents: list[np.ndarray] = []
    sources = []
    for path in options.files:
        file = read_text_file(path, MAX_FILE_BYTES)
        if teacher is not model:
            _check_reading(file, tokenizer, teacher)
        ids = [np.array(piece, np.int32) for piece in _encoded(file, tokenizer, end)]
        sources.append(TextSource(name=path.name, kind=file.kind, digest=file.digest, tokens=sum(map(len, ids))))
        documents += ids
    rows = _packed(documents, tokenizer.beginning, options.length)
    if not len(rows):
        found = sum(map(len, documents))
        raise BadOption(
            f"{options.files[0]}: {found:,} tokens of text do not fill one sequence of {options.length:,}",
            hint="give more text, or shorter sequences: --length",
        )
    return TrainingText(rows, options.held_out, options.seed, sources)


def _check_sizes(model: Checkpoint, teacher: Checkpoint) -> None:
    size, other = model.spec.vocab_size, teacher.spec.vocab_size
    if size != other:
        raise BadOption(f"{teacher.path}: the teacher has {other:,} tokens, the model {size:,}", hint=SHARED)


def _check_reading(file: TextFile, tokenizer: Tokenizer, teacher: Checkpoint) -> None:
    """Raise `BadOption` if the teacher's tokenizer reads the beginning of `file` otherwise."""
    theirs = find_tokenizer(teacher)
    probe = "".join(file.texts(tokenizer, file.records[:1]))[:PROBE_CHARS]
    if not isinstance(theirs, str) and tokenizer.encode(probe) != theirs.encode(probe):
        raise BadOption(
            f"{teacher.path}: the teacher reads {file.path.name} as other tokens than the model does", hint=SHARED
        )


def _encoded(file: TextFile, tokenizer: Tokenizer, end: list[int]) -> Iterator[list[int]]:
    """Ids of every document. The portions of a plain text are one document, conversations bring their own ends."""
    texts = file.texts(tokenizer)
    for number, (record, text) in enumerate(zip(file.records, texts, strict=True)):
        for start in range(0, len(text), PORTION_CHARS):
            yield tokenizer.encode(text[start : start + PORTION_CHARS], add_bos=False)
        if isinstance(record, str) and (file.kind != "text" or number == len(texts) - 1):
            yield end


def _packed(documents: Sequence[np.ndarray], beginning: Sequence[int], length: int) -> np.ndarray:
    """Rows int32 [rows, length]; a rest that does not fill one is left out."""
    stream = np.concatenate([np.zeros(0, np.int32), *documents])
    step = length - len(beginning)
    count = len(stream) // step
    head = np.tile(np.array(beginning, np.int32), (count, 1))
    return np.concatenate([head, stream[: count * step].reshape(count, step)], axis=1)
