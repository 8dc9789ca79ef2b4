"""What transformers makes of a tokenizer.json: some of its classes keep the pieces and put rules of their own around.

`AutoTokenizer` of transformers 5 takes the class from tokenizer_config.json. Most load tokenizer.json as it is
(`TokenizersBackend`, which older configs call `PreTrainedTokenizerFast`). `LlamaTokenizer` and a few others take its
vocabulary, merges and post-processor only. What is done to spaces then depends on `legacy` and `add_prefix_space`.
Source: `AutoTokenizer.from_pretrained`, `TokenizersBackend.convert_to_native_format`, `LlamaTokenizer`,
`GPT2Tokenizer` and `Qwen2Tokenizer` of transformers 5.24; `tests/text/test_transformers.py` holds it to them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from quantkit.text.sentencepiece_model import WORD_BOUNDARY
from quantkit.text.tokenizer_config import flag
from quantkit.text.tokenizer_files import CONFIG_FILE, MODEL_FILE, TOKENIZER_FILE, Files, read_object
from quantkit.text.tokenizers.parsing import TokenizerJson, read_tokenizer_json
from quantkit.text.tokenizers.rules import TextRules, is_byte_level, read_rules
from quantkit.text.tokenizers.splitting import QWEN2, byte_level, isolated

DEFAULT_NAMES: Mapping[str, tuple[str, ...]] = {
    "LlamaTokenizer": ("<unk>", "<s>", "</s>"),
    "GPT2Tokenizer": ("<|endoftext|>",),
    "Qwen2Tokenizer": ("<|endoftext|>",),
}
"""Tokens that a class calls special though no file does."""


def class_name(config: Mapping[str, Any]) -> str:
    """The class that tokenizer_config.json names, without the "Fast" at its end; empty where it names none."""
    name = config.get("tokenizer_class")
    return name.removesuffix("Fast") if isinstance(name, str) else ""


def rebuilds(config: Mapping[str, Any]) -> bool:
    """Whether the class that is named puts rules of its own around the pieces of tokenizer.json."""
    return class_name(config) in _CLASSES


def followed_rules(files: Files) -> TextRules | None:
    """The rules by which transformers splits a text with these files; None where there is no tokenizer.json.

    Raises:
        MalformedFile: `legacy` or `add_prefix_space` is neither true nor false.
        MalformedFile, UnsupportedModel: see `read_rules`.
    """
    tokenizer = read_tokenizer_json(files)
    if tokenizer is None:
        return None
    config = read_object(files, CONFIG_FILE)
    name = class_name(config)
    legacy = flag(config, "legacy", default=False)
    prefixed = flag(config, "add_prefix_space", default=name == "LlamaTokenizer")
    return _followed(tokenizer, name, legacy, prefixed)


@lru_cache(maxsize=1)
def _followed(tokenizer: TokenizerJson, name: str, legacy: bool, prefixed: bool) -> TextRules:
    rules = read_rules(tokenizer)
    if name == "LlamaTokenizer" and tokenizer.names_bytes:
        return rules  # the file says bytes, the class does not: transformers goes by the file
    change = _CLASSES.get(name)
    return rules if change is None else change(rules, legacy, prefixed)


def _llama(rules: TextRules, legacy: bool, prefixed: bool) -> TextRules:
    scheme = "never" if not prefixed else "always" if legacy else "first"
    metaspace = {"type": "Metaspace", "replacement": WORD_BOUNDARY, "prepend_scheme": scheme, "split": False}
    return replace(
        rules,
        normalizers=(),
        cuts=(metaspace,),
        unk_token=None,
        fuse_unk=True,
        byte_fallback=True,
        ignore_merges=False,
    )


def _gpt2(rules: TextRules, _: bool, prefixed: bool) -> TextRules:
    return replace(_plain(rules), cuts=(byte_level(prefix=prefixed),))


def _qwen2(rules: TextRules, _: bool, prefixed: bool) -> TextRules:
    cuts = (isolated(QWEN2), byte_level(prefix=prefixed, regex=False))
    return replace(_plain(rules), normalizers=({"type": "NFC"},), cuts=cuts)


def _plain(rules: TextRules) -> TextRules:
    return replace(rules, normalizers=(), unk_token=None, fuse_unk=False, byte_fallback=False, ignore_merges=False)


_CLASSES: Mapping[str, Callable[[TextRules, bool, bool], TextRules]] = {
    "LlamaTokenizer": _llama,
    "GPT2Tokenizer": _gpt2,
    "Qwen2Tokenizer": _qwen2,
}


def class_note(files: Files) -> str | None:
    """A line where the class puts other rules around the pieces than tokenizer.json has, or None."""
    tokenizer, config = read_tokenizer_json(files), read_object(files, CONFIG_FILE)
    followed = followed_rules(files)
    if tokenizer is None or followed is None or followed == read_rules(tokenizer):
        return None
    name = f"{CONFIG_FILE}: tokenizer_class {class_name(config)[:40]!r}"
    if MODEL_FILE in files and is_byte_level(followed):
        return f"{name} is for byte-level tokenizers; {MODEL_FILE} is followed, which is none"
    return (
        f"{name} has rules of its own for spaces and words, which transformers and quantkit follow instead of those in "
        f"{TOKENIZER_FILE}"
    )
