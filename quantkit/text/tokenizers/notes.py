"""What a user should know of a folder's tokenizer: what is not followed, and what engines do otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from quantkit.errors import MalformedFile, UnsupportedModel
from quantkit.text.added_tokens import TOOL_TAG, AddedToken, rule_notes
from quantkit.text.tokenizer_config import named_token
from quantkit.text.tokenizer_files import CONFIG_FILE, MODEL_FILE, TOKENIZER_FILE, Files, read_object
from quantkit.text.tokenizers.classes import class_note, followed_rules
from quantkit.text.tokenizers.parsing import TokenizerJson, read_tokenizer_json
from quantkit.text.tokenizers.rules import TextRules


def tokenizer_notes(files: Files, added: Mapping[int, AddedToken]) -> Iterator[str]:
    """Lines about tokenizer.json and added tokens.

    Raises:
        MalformedFile: tokenizer.json is not JSON, or its lists contradict each other.
    """
    yield from _tag_notes(added)
    tokenizer = read_tokenizer_json(files)
    if tokenizer is None:
        yield from rule_notes(added)
        return
    try:
        rules = followed_rules(files)
        told = class_note(files)
    except (UnsupportedModel, MalformedFile) as error:  # weights do not need it; `read_vocabulary` refuses it
        beside = MODEL_FILE in files
        yield f"{error}; text is split by {MODEL_FILE}" if beside else f"no text can be encoded: {error}"
        yield from rule_notes(added) if beside else ()
        return
    assert rules is not None
    if told is not None:
        yield told
    if tokenizer.rules.get("truncation") is not None:
        yield f"{TOKENIZER_FILE}: its truncation is not followed"
    yield from _edge_notes(files, tokenizer, rules)


def contradicted_flags(config: Mapping[str, Any], rules: TextRules) -> dict[str, bool]:
    """Flags of tokenizer_config.json that say otherwise than tokenizer.json does, with what that does.

    transformers 5 goes by tokenizer.json, older ones by the flags.
    """
    does = {"add_bos_token": bool(rules.first), "add_eos_token": bool(rules.last)}
    return {
        flag: added for flag, added in does.items() if isinstance(config.get(flag), bool) and config[flag] is not added
    }


def _tag_notes(added: Mapping[int, AddedToken]) -> Iterator[str]:
    tags = [token.text for token in added.values() if token.special and TOOL_TAG.fullmatch(token.text)]
    if tags:
        yield (
            f"{', '.join(map(repr, tags[:6]))} are special tokens and a part of tool calls: quantkit and its GGUF "
            "files write them out, transformers and vLLM only with skip_special_tokens=False"
        )


def _edge_notes(files: Files, tokenizer: TokenizerJson, rules: TextRules) -> Iterator[str]:
    """Where tokenizer.json puts other tokens around a text than the config says: transformers 5 goes by the former."""
    config = read_object(files, CONFIG_FILE)
    names = {index: piece for piece, index in tokenizer.ids.items()}
    for flag, added in contradicted_flags(config, rules).items():
        says = "adds one" if added else "adds none"
        yield f"{CONFIG_FILE}: {flag} {config[flag]} is not followed: {TOKENIZER_FILE} {says}"
    for name, ids in (("bos", rules.first), ("eos", rules.last)):
        named = named_token(files, f"{name}_token")
        texts = [names.get(index, str(index)) for index in ids]
        if ids and named is not None and texts != [named[0]]:
            yield f"{named[1]}: {name}_token is {named[0]!r}, but {TOKENIZER_FILE} adds {' '.join(texts)!r}"
    if rules.last:
        last = names.get(rules.last[0])
        yield f"{TOKENIZER_FILE} ends every text with {last!r}, quantkit's prompts do not"
