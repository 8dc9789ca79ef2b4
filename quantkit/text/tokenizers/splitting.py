"""The names that llama.cpp has for ways of cutting a text into words: `tokenizer.ggml.pre`.

A byte-level BPE first cuts a text, then joins bytes within each part. A GGUF file holds the name of the cutting rule
only; the rule itself is part of llama.cpp. A name stands here when the rule behind it gives the ids that the
`tokenizers` library gives (`tests/exporters/gguf/test_tokenizers.py`). Source: `llama_vocab::impl::load` and
`llm_tokenizer_bpe` of llama.cpp, tokenizer.json of the models that the names come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Step = Mapping[str, Any]

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}"
QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_TAIL}"
MINICPM5 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}+|{_TAIL}"
DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def isolated(pattern: str) -> Step:
    """Every match of the regular expression `pattern` is a part of its own."""
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def byte_level(*, prefix: bool = False, regex: bool = True) -> Step:
    """Bytes as letters; prefix: a space before every text; regex: cut as GPT-2 does."""
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": regex}


_DIGITS: Step = {"type": "Digits", "individual_digits": True}
_BYTES = byte_level(regex=False)


@dataclass(frozen=True, slots=True)
class Splitting:
    """One cutting rule.

    pre: llama.cpp's name. cuts: the same as pre-tokenizers. aliases: other names that it has for the same rule.
    whole_words: whether a word that is a token is taken before any merge (`ignore_merges`). adds_bos: whether llama.cpp
    puts a first token where the file does not say.
    """

    pre: str
    cuts: tuple[Step, ...]
    aliases: tuple[str, ...] = ()
    whole_words: bool = False
    adds_bos: bool = False


SPLITTINGS = (
    Splitting(
        "gpt-2",
        (byte_level(),),
        ("phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4", "gigachat", "a.x-4.0", "mellum"),
    ),
    Splitting(
        "smollm",
        (_DIGITS, byte_level()),
        ("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"),
    ),
    Splitting(
        "llama-bpe",
        (isolated(LLAMA3), _BYTES),
        ("llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0", "lfm2"),
        whole_words=True,
        adds_bos=True,
    ),
    Splitting("dbrx", (isolated(LLAMA3), _BYTES), ("smaug-bpe",)),
    Splitting(
        "qwen2",
        (isolated(QWEN2), _BYTES),
        ("deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan", "grok-2", "solar-open", "kormo", "f2llmv2"),
    ),
    Splitting("minicpm5", (isolated(r"\p{N}{1,3}"), isolated(MINICPM5), _BYTES), whole_words=True),
    Splitting(
        "deepseek-v3",
        (isolated(r"\p{N}{1,3}"), isolated("[一-龥\u3040-ゟ゠-ヿ]+"), isolated(DEEPSEEK3), _BYTES),
        ("hunyuan-dense", "joyai-llm"),
    ),
)


def splitting_of(cuts: Sequence[Step]) -> tuple[Splitting, ...]:
    """The rules that cut as `cuts` do: with and without taking whole words, where llama.cpp has both."""
    return tuple(splitting for splitting in SPLITTINGS if list(splitting.cuts) == list(cuts))


def splitting_named(pre: str) -> Splitting | None:
    """The rule that llama.cpp calls `pre`, or None for a name that is not known here."""
    return next((splitting for splitting in SPLITTINGS if pre in (splitting.pre, *splitting.aliases)), None)
