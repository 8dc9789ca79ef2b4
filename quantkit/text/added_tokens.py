"""Tokens that stand beside the pieces of `tokenizer.model`, merged from the three files that can name them.

`added_tokens.json`, `added_tokens` of tokenizer.json (all that transformers 5 writes) and `added_tokens_decoder` of
tokenizer_config.json must agree about ids and texts. Whether a token is special is said by the last of them that names
it, as in transformers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from quantkit.errors import InconsistentCheckpoint, MalformedFile
from quantkit.text.sentencepiece_model import TokenKind
from quantkit.text.tokenizer_config import further_specials
from quantkit.text.tokenizer_files import (
    ADDED_FILE,
    CONFIG_FILE,
    SPECIALS_FILE,
    TOKENIZER_FILE,
    Files,
    read_object,
    token_text,
)
from quantkit.text.tokenizers.classes import DEFAULT_NAMES, class_name, rebuilds
from quantkit.text.tokenizers.library import SoughtToken
from quantkit.text.tokenizers.parsing import read_tokenizer_json

RULES = ("lstrip", "rstrip", "single_word")
"""Ways of finding a token in a text that neither SentencePiece nor GGUF has."""
TOOL_TAG = re.compile(r"</?(function|param|parameter|tool_call|tool_response|think)>?")
"""Marks of tool calls and thoughts that are a part of what a model says, whatever a file calls them: MiniCPM5 has
`<function`, `</function>`, `<param` and `</param>` as special tokens, and an engine that leaves special tokens out of
the text breaks every tool call."""


@dataclass(frozen=True, slots=True)
class AddedToken:
    """One token. text: as the file has it. special: not part of what a model says. rules: the `RULES` it asks for, and
    "normalized" where it is looked for in the text that the normalizer has changed.
    """

    text: str
    special: bool
    rules: frozenset[str] = frozenset()


def kind_of(token: AddedToken) -> TokenKind:
    """Control tokens are left out of what a model says; others, tool tags among them, are written out."""
    hidden = token.special and TOOL_TAG.fullmatch(token.text) is None
    return TokenKind.CONTROL if hidden else TokenKind.USER_DEFINED


def read_added_tokens(files: Files, size: int) -> dict[int, AddedToken]:
    """Id to token, in the order in which the files name them; `size` is the number of ids that the model has.

    Raises:
        MalformedFile: an entry without a valid id or text.
        InconsistentCheckpoint: an id outside the vocabulary, an id with two texts, or a text with two ids.
    """
    tokens: dict[int, AddedToken] = {}
    ids: dict[str, int] = {}
    named_by: dict[int, str] = {}
    for file, index, token in _entries(files, size):
        known = tokens.get(index)
        if known is not None and known.text != token.text:
            raise InconsistentCheckpoint(_disagreement(index, known.text, named_by[index], token.text, file))
        if ids.setdefault(token.text, index) != index:
            other = ids[token.text]
            raise InconsistentCheckpoint(
                f"token {token.text!r} has two ids, {other} in {named_by[other]} and {index} in {file}"
            )
        named_by.setdefault(index, file)
        tokens[index] = AddedToken(token.text, token.special, token.rules | (known.rules if known else frozenset()))
    return tokens


def rule_notes(tokens: Mapping[int, AddedToken]) -> Iterator[str]:
    """One line about the tokens that are found in a text by rules that quantkit and llama.cpp do not have."""
    odd = [token for token in tokens.values() if token.rules]
    if odd:
        rules = ", ".join(sorted({rule for token in odd for rule in token.rules}))
        names = ", ".join(repr(token.text) for token in odd[:4]) + (" ..." if len(odd) > 4 else "")
        yield (
            f"added tokens {names} ask for {rules}, which quantkit and llama.cpp do not follow: "
            "text beside them may get other ids than in transformers"
        )


def _entries(files: Files, size: int) -> Iterator[tuple[str, int, AddedToken]]:
    for text, index in read_object(files, ADDED_FILE).items():
        if not text:
            raise MalformedFile(f"{ADDED_FILE}: a token has no content")
        yield ADDED_FILE, _checked_id(index, size, f"{ADDED_FILE}: {text!r}"), AddedToken(text, special=False)
    for place, entry in enumerate(_listed(files)):
        where = f"{TOKENIZER_FILE}: added token {place}"
        token = _token(entry, where)
        yield TOKENIZER_FILE, _checked_id(entry.get("id"), size, f"{where} ({token.text[:40]!r})"), token
    decoder = read_object(files, CONFIG_FILE).get("added_tokens_decoder") or {}
    if not isinstance(decoder, Mapping):
        raise MalformedFile(f"{CONFIG_FILE}: added_tokens_decoder must be an object")
    for key, entry in decoder.items():
        where = f"{CONFIG_FILE}: added token {key[:20]!r}"
        index = int(key) if key.isascii() and key.isdigit() and len(key) < 12 else None
        yield CONFIG_FILE, _checked_id(index, size, where), _token(entry, where)


def _listed(files: Files) -> list[Any]:
    tokenizer = read_tokenizer_json(files)
    listed = (tokenizer.rules.get("added_tokens") if tokenizer is not None else None) or []
    if not isinstance(listed, list):
        raise MalformedFile(f"{TOKENIZER_FILE}: added_tokens must be a list")
    return listed


def sought_tokens(files: Files, added: Mapping[int, AddedToken], ids: Mapping[str, int]) -> list[SoughtToken]:
    """The added tokens as transformers looks for them in a text, by id; files as in `read_added_tokens`, which has
    checked them; `ids`: the pieces of tokenizer.json.

    How a token is looked for is said by the first file that names it. Tokens that have a role (`bos_token`) are added
    where they are pieces only.
    """
    config = read_object(files, CONFIG_FILE)
    decoder: Mapping[str, Any] = config.get("added_tokens_decoder") or {}
    entries: list[Any] = [*_listed(files), *decoder.values()]
    if decoder and rebuilds(config):
        entries = [*decoder.values(), *_listed(files)]
    flags: dict[str, Mapping[str, bool]] = {}
    for entry in entries:
        given = {rule: entry.get(rule) is True for rule in RULES}
        normalized = entry.get("normalized", entry.get("special") is not True) is True
        flags.setdefault(entry["content"], {**given, "normalized": normalized})
    sought = {token.text: (index, token.special) for index, token in added.items()}
    for text in (*_role_texts(files), *DEFAULT_NAMES.get(class_name(config), ())):
        if text not in sought and text in ids:
            sought[text] = ids[text], True
    plain = dict.fromkeys((*RULES, "normalized"), False)
    return [
        SoughtToken(index, text, special, flags.get(text, plain | {"normalized": not special}))
        for text, (index, special) in sorted(sought.items(), key=lambda item: item[1][0])
    ]


def _role_texts(files: Files) -> Iterator[str]:
    for file in (CONFIG_FILE, SPECIALS_FILE):
        for key, value in read_object(files, file).items():
            if key.endswith("_token") and not isinstance(value, bool):
                text = token_text(value, f"{file}: {key}")
                if text is not None:
                    yield text
    yield from further_specials(files)


def _token(entry: Any, where: str) -> AddedToken:  # noqa: ANN401 - JSON
    content = entry.get("content") if isinstance(entry, Mapping) else None
    if not isinstance(content, str) or not content:
        raise MalformedFile(f"{where} has no content")
    special = entry.get("special") is True
    rules = {rule for rule in RULES if entry.get(rule) is True}
    if entry.get("normalized") is True and not special:
        rules.add("normalized")
    return AddedToken(content, special, frozenset(rules))


def _disagreement(index: int, text: str, file: str, other: str, other_file: str) -> str:
    if file == other_file:
        return f"{file}: tokens {text!r} and {other!r} share id {index}"
    return f"token {index} is {text!r} in {file}, {other!r} in {other_file}"


def _checked_id(index: object, size: int, where: str) -> int:
    if not isinstance(index, int) or isinstance(index, bool) or index < 0:
        raise MalformedFile(f"{where} has no valid id")
    if index >= size:
        raise InconsistentCheckpoint(
            f"{where} has id {index}; vocab_size is {size}",
            hint=f"take the token out of the file, or give embedding and head {index + 1} rows (in transformers, "
            "resize_token_embeddings) and train them",
        )
    return index
