"""tokenizer.json made from a flat list of tokens, as a GGUF file has it, so that transformers splits as llama.cpp does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from quantkit.text.sentencepiece_model import TokenKind
from quantkit.text.tokenizer_json import splits
from quantkit.text.tokenizers.splitting import splitting_named
from quantkit.text.tokenizers.translation import SPACE

_SOUGHT = (TokenKind.CONTROL, TokenKind.USER_DEFINED, TokenKind.UNKNOWN)
_FIRST_OF_SPACES = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def byte_level_json(
    tokens: Sequence[str], kinds: Sequence[TokenKind], merges: Sequence[str], pre: str, edges: Mapping[str, int | None]
) -> bytes:
    """A byte-level BPE that cuts text as llama.cpp's rule `pre`; `edges`: ids before ("first") and after a text."""
    splitting = splitting_named(pre)
    assert splitting is not None  # whoever read the file left other names aside
    cuts = [dict(step) for step in splitting.cuts]
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": splitting.whole_words,
        "vocab": _vocab(tokens, kinds),
        "merges": [merge.split(" ", 1) for merge in merges],
    }
    return _json_bytes(
        added_tokens=_added(tokens, kinds),
        normalizer=None,
        pre_tokenizer=cuts[0] if len(cuts) == 1 else {"type": "Sequence", "pretokenizers": cuts},
        post_processor=_template(tokens, edges),
        decoder={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        model=model,
    )


def sentencepiece_json(
    tokens: Sequence[str],
    scores: Sequence[float],
    kinds: Sequence[TokenKind],
    *,
    unk: int | None,
    add_space_prefix: bool,
    edges: Mapping[str, int | None],
) -> bytes:
    """A BPE that joins what SentencePiece joins, in the order of the scores, which must differ from each other."""
    wholes = [(tokens[left] + tokens[right], left, right) for left, right in splits(tokens, kinds)]
    ids = {text: index for index, text in enumerate(tokens)}
    ordered = sorted(wholes, key=lambda entry: (-scores[ids[entry[0]]], entry[1], entry[2]))
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    steps = [*([{"type": "Prepend", "prepend": SPACE}] if add_space_prefix else []), replace]
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    decoders = [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *([_FIRST_OF_SPACES] if add_space_prefix else [])]
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None if unk is None else tokens[unk],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": TokenKind.BYTE in kinds,
        "ignore_merges": False,
        "vocab": _vocab(tokens, kinds),
        "merges": [[tokens[left], tokens[right]] for _, left, right in ordered],
    }
    return _json_bytes(
        added_tokens=_added(tokens, kinds),
        normalizer={"type": "Sequence", "normalizers": steps},
        pre_tokenizer=None,
        post_processor=_template(tokens, edges),
        decoder={"type": "Sequence", "decoders": decoders},
        model=model,
    )


def added_entry(text: str, kind: TokenKind) -> dict[str, Any]:
    """How a token is looked for in a text: as llama.cpp does, by its letters alone."""
    return {
        "content": text,
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": kind is not TokenKind.USER_DEFINED,
    }


def _vocab(tokens: Sequence[str], kinds: Sequence[TokenKind]) -> dict[str, int]:
    pairs = enumerate(zip(tokens, kinds, strict=True))
    return {text: index for index, (text, kind) in pairs if kind is not TokenKind.UNUSED}


def _added(tokens: Sequence[str], kinds: Sequence[TokenKind]) -> list[dict[str, Any]]:
    pairs = enumerate(zip(tokens, kinds, strict=True))
    return [{"id": index, **added_entry(text, kind)} for index, (text, kind) in pairs if kind in _SOUGHT]


def _template(tokens: Sequence[str], edges: Mapping[str, int | None]) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"Sequence": {"id": "A", "type_id": 0}}]
    first, last = edges.get("first"), edges.get("last")
    if first is not None:
        parts.insert(0, {"SpecialToken": {"id": tokens[first], "type_id": 0}})
    if last is not None:
        parts.append({"SpecialToken": {"id": tokens[last], "type_id": 0}})
    pair = [{kind: {**value, "type_id": 1} for kind, value in part.items()} for part in parts]
    for part in pair:
        if "Sequence" in part:
            part["Sequence"]["id"] = "B"
    named = {tokens[index]: index for index in (first, last) if index is not None}
    return {
        "type": "TemplateProcessing",
        "single": parts,
        "pair": [*parts, *pair],
        "special_tokens": {name: {"id": name, "ids": [index], "tokens": [name]} for name, index in named.items()},
    }


def _json_bytes(**parts: Any) -> bytes:  # noqa: ANN401 - JSON
    whole = {"version": "1.0", "truncation": None, "padding": None, **parts}
    return (json.dumps(whole, ensure_ascii=False, indent=1) + "\n").encode("utf-8")
