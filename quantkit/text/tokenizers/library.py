"""The `tokenizers` library, which splits texts by tokenizer.json: built from rules that were read strictly before.

Nothing that it raises gets out. Some of its failures are Rust panics, which come as a `BaseException` of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantkit.errors import InconsistentCheckpoint, MissingDependency, UnsupportedModel
from quantkit.text.tokenizer_files import TOKENIZER_FILE
from quantkit.text.tokenizers.rules import Step, TextRules

if TYPE_CHECKING:
    from tokenizers import Tokenizer as LibraryTokenizer

_PANIC = "PanicException"


@dataclass(frozen=True, slots=True)
class SoughtToken:
    """A token that is looked for in a text before it is split.

    flags: "single_word", "lstrip", "rstrip" and "normalized", as in tokenizer.json.
    """

    index: int
    text: str
    special: bool
    flags: Mapping[str, bool]


class TextSplitter:
    """Splits texts into the ids of pieces and added tokens, without the tokens around a text.

    Args:
        rules: what is done to a text.
        ids: piece to id.
        merges: pairs of pieces, in the order in which they are tried.
        added: tokens that are looked for in the text first, in the order of their ids.

    Raises:
        MissingDependency: the library is not installed.
        UnsupportedModel: it refuses the rules.
        InconsistentCheckpoint: an added token would get another id in transformers than the files say.
    """

    def __init__(
        self,
        rules: TextRules,
        ids: Mapping[str, int],
        merges: Sequence[tuple[str, str]],
        added: Sequence[SoughtToken],
    ) -> None:
        try:
            from tokenizers import AddedToken, models  # noqa: PLC0415 - part of an extra
        except ImportError:
            raise MissingDependency("tokenizing needs tokenizers", hint="pip install 'quantkit[text]'") from None
        with _contained(f"{TOKENIZER_FILE}: the tokenizers library refuses it"):
            library = _frame(rules)
            library.model = models.BPE(
                vocab=dict(ids),
                merges=list(merges),
                unk_token=rules.unk_token,
                fuse_unk=rules.fuse_unk,
                byte_fallback=rules.byte_fallback,
                ignore_merges=rules.ignore_merges,
            )
            library.add_tokens([AddedToken(entry.text, special=entry.special, **entry.flags) for entry in added])
        for entry in added:
            found = library.token_to_id(entry.text)
            if found != entry.index:
                raise InconsistentCheckpoint(
                    f"added token {entry.text[:40]!r} has id {entry.index}, which does not follow the ids before it: "
                    f"transformers makes it {found}"
                )
        self._library = library

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; raises `UnsupportedModel` where the library fails."""
        with _contained(f"{TOKENIZER_FILE}: the tokenizers library cannot split this text"):
            ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
        return ids

    def words(self, pieces: Sequence[str]) -> list[list[int]]:
        """The ids that merging makes of each piece as a word of its own."""
        with _contained(f"{TOKENIZER_FILE}: the tokenizers library cannot split its pieces"):
            model = self._library.model
            return [[token.id for token in model.tokenize(piece)] for piece in pieces]


def _frame(rules: TextRules) -> LibraryTokenizer:
    """A tokenizer with the steps around the model and no pieces."""
    from tokenizers import Tokenizer  # noqa: PLC0415 - part of an extra

    empty = {"type": "BPE", "vocab": {}, "merges": []}
    return Tokenizer.from_str(
        json.dumps(
            {
                "version": "1.0",
                "added_tokens": [],
                "normalizer": _sequence(rules.normalizers, "normalizers"),
                "pre_tokenizer": _sequence(rules.cuts, "pretokenizers"),
                "model": empty,
            }
        )
    )


def _sequence(steps: Sequence[Step], members: str) -> Step | None:
    if not steps:
        return None
    return dict(steps[0]) if len(steps) == 1 else {"type": "Sequence", members: list(map(dict, steps))}


@contextmanager
def _contained(what: str) -> Iterator[None]:
    """Turn what the library raises, panics included, into `UnsupportedModel`."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != _PANIC:
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UnsupportedModel(f"{what}: {reason[:120]}") from None
