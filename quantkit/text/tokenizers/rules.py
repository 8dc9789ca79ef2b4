"""The rules of a tokenizer.json: what is done to a text before it is split into pieces, and what is put around it.

Every rule is read strictly and written anew in one form, with its defaults filled in. The library meets nothing else:
it ends its thread, or takes memory without bound, on some files that its own format allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantkit.errors import MalformedFile, UnsupportedModel
from quantkit.text.sentencepiece_model import WORD_BOUNDARY
from quantkit.text.tokenizer_files import TOKENIZER_FILE
from quantkit.text.tokenizers.parsing import TokenizerJson
from quantkit.text.tokenizers.patterns import check_pattern

MAX_STEPS = 16
MAX_GROWTH = 64
"""How much longer normalizers may make a text, all together."""
MAX_CONTENT_CHARS = 64

Step = Mapping[str, Any]
"""One rule in its full form: "type" and all its settings."""
SPACE_BEFORE: Step = {"type": "Prepend", "prepend": WORD_BOUNDARY}
SPACES_MARKED: Step = {"type": "Replace", "pattern": {"String": " "}, "content": WORD_BOUNDARY}
"""What SentencePiece does to spaces, as rules of a normalizer."""


@dataclass(frozen=True, slots=True)
class TextRules:
    """How a text becomes pieces of a BPE model.

    normalizers, cuts: steps before the model, in their order; `cuts` are tokenizer.json's pre-tokenizers.
    unk_token, fuse_unk, byte_fallback, ignore_merges: settings of the model. first, last: ids that are put before and
    after every text.
    """

    normalizers: tuple[Step, ...]
    cuts: tuple[Step, ...]
    unk_token: str | None
    fuse_unk: bool
    byte_fallback: bool
    ignore_merges: bool
    first: tuple[int, ...]
    last: tuple[int, ...]


def is_byte_level(rules: TextRules) -> bool:
    """Whether the pieces are written in letters that stand for bytes."""
    return any(step["type"] == "ByteLevel" for step in (*rules.normalizers, *rules.cuts))


def read_rules(tokenizer: TokenizerJson) -> TextRules:
    """The rules that tokenizer.json names.

    Raises:
        MalformedFile: a rule that breaks its form.
        UnsupportedModel: a model that is not BPE, or a rule that is not known, by its name.
    """
    model = tokenizer.model
    kind = model.get("type", "BPE")
    if kind != "BPE":
        raise UnsupportedModel(f"{TOKENIZER_FILE} holds a model of type {str(kind)[:40]!r}; only BPE is supported")
    if not tokenizer.ids:
        raise MalformedFile(f"{TOKENIZER_FILE}: the model's vocab is not a list of pieces with their ids")
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(key):
            raise UnsupportedModel(f"{TOKENIZER_FILE}: {key} {str(model[key])[:40]!r} is not supported")
    unk = model.get("unk_token")
    if unk is not None and (not isinstance(unk, str) or unk not in tokenizer.ids):
        raise MalformedFile(f"{TOKENIZER_FILE}: unk_token {str(unk)[:40]!r} is not in its vocab")
    normalizers = tuple(map(_normalizer, flat_steps(tokenizer.rules.get("normalizer"), "normalizers")))
    growth = 1.0
    for step in normalizers:
        growth *= _growth(step)
    if growth > MAX_GROWTH:
        raise UnsupportedModel(f"{TOKENIZER_FILE}: its normalizer makes a text {growth:.0f} times as long")
    first, last = _edges(tokenizer)
    return TextRules(
        normalizers=normalizers,
        cuts=tuple(map(_cut, flat_steps(tokenizer.rules.get("pre_tokenizer"), "pretokenizers"))),
        unk_token=unk,
        fuse_unk=_flag(model, "fuse_unk", default=False),
        byte_fallback=_flag(model, "byte_fallback", default=False),
        ignore_merges=_flag(model, "ignore_merges", default=False),
        first=first,
        last=last,
    )


def flat_steps(rule: object, members: str) -> list[Step]:
    """The rules that a `Sequence` is made of, sequences within it taken apart; one rule alone; none for null.

    Raises:
        MalformedFile: something else, or more than `MAX_STEPS`.
    """
    steps = list(_flat(rule, members, MAX_STEPS))
    if len(steps) > MAX_STEPS:
        raise MalformedFile(f"{TOKENIZER_FILE}: more than {MAX_STEPS} {members}")
    return steps


def _flat(rule: object, members: str, depth: int) -> Iterator[Step]:
    if rule is None:
        return
    if not isinstance(rule, Mapping) or not isinstance(rule.get("type"), str) or not depth:
        raise MalformedFile(f"{TOKENIZER_FILE}: {str(rule)[:60]!r} is not a rule with a type")
    if rule["type"] != "Sequence":
        yield rule
        return
    listed = rule.get(members)
    if not isinstance(listed, list) or len(listed) > MAX_STEPS:
        raise MalformedFile(f"{TOKENIZER_FILE}: a Sequence needs a list of at most {MAX_STEPS} {members}")
    for step in listed:
        yield from _flat(step, members, depth - 1)


_BEHAVIORS = ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")
_PLAIN_NORMALIZERS = ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt", "ByteLevel")


def _normalizer(step: Step) -> Step:
    kind = step["type"]
    if kind in _PLAIN_NORMALIZERS:
        return {"type": kind}
    if kind == "Prepend":
        return {"type": kind, "prepend": _text(step, "prepend")}
    if kind == "Replace":
        return {"type": kind, "pattern": _pattern(step), "content": _text(step, "content", least=0)}
    if kind == "Strip":
        sides = ("strip_left", "strip_right")
        return {"type": kind, **{side: _flag(step, side, default=False) for side in sides}}
    raise UnsupportedModel(f"{TOKENIZER_FILE} changes text by the rule {kind[:40]!r}, which is not supported")


def _growth(step: Step) -> float:
    """How much longer a step can make a text of some length; what is put before it once counts nothing."""
    if step["type"] == "Replace":
        pattern = step["pattern"].get("String", " ")
        return max(1.0, len(step["content"]) / len(pattern))
    return 18.0 if step["type"] in ("NFKC", "NFKD") else 3.0 if step["type"] in ("NFC", "NFD") else 1.0


def _cut(step: Step) -> Step:
    kind = step["type"]
    if kind not in _CUTS:
        raise UnsupportedModel(f"{TOKENIZER_FILE} cuts text by the rule {kind[:40]!r}, which is not supported")
    return {"type": kind, **_CUTS[kind](step)}


def _byte_level(step: Step) -> Step:
    # Without its own regular expression written down, a file means that it has one: so older releases wrote it.
    return {
        "add_prefix_space": _flag(step, "add_prefix_space", default=True),
        "trim_offsets": True,
        "use_regex": _flag(step, "use_regex", default=True),
    }


def _metaspace(step: Step) -> Step:
    scheme = step.get("prepend_scheme", "always" if _flag(step, "add_prefix_space", default=True) else "never")
    if scheme not in ("always", "first", "never"):
        raise MalformedFile(f"{TOKENIZER_FILE}: prepend_scheme {str(scheme)[:40]!r} is not always, first or never")
    replacement = _text(step, "replacement")
    if len(replacement) != 1:
        raise MalformedFile(f"{TOKENIZER_FILE}: the replacement {replacement[:40]!r} is not one character")
    return {"replacement": replacement, "prepend_scheme": scheme, "split": _flag(step, "split", default=True)}


def _split(step: Step) -> Step:
    return {
        "pattern": _pattern(step),
        "behavior": _behavior(step),
        "invert": _flag(step, "invert", default=False),
    }


_CUTS: Mapping[str, Callable[[Step], Step]] = {
    "ByteLevel": _byte_level,
    "Metaspace": _metaspace,
    "Split": _split,
    "Digits": lambda step: {"individual_digits": _flag(step, "individual_digits", default=False)},
    "Punctuation": lambda step: {"behavior": _behavior(step, default="Isolated")},
    "Whitespace": lambda _: {},
    "WhitespaceSplit": lambda _: {},
    "UnicodeScripts": lambda _: {},
}


def _behavior(step: Step, default: str | None = None) -> str:
    value = step.get("behavior", default)
    if value not in _BEHAVIORS:
        raise MalformedFile(f"{TOKENIZER_FILE}: behavior {str(value)[:40]!r} is none of {', '.join(_BEHAVIORS)}")
    return str(value)


def _pattern(step: Step) -> Step:
    pattern = step.get("pattern")
    if not isinstance(pattern, Mapping) or len(pattern) != 1 or not {"String", "Regex"} & set(pattern):
        raise MalformedFile(f"{TOKENIZER_FILE}: pattern {str(pattern)[:60]!r} is neither a String nor a Regex")
    ((kind, text),) = pattern.items()
    if not isinstance(text, str) or not text:
        raise MalformedFile(f"{TOKENIZER_FILE}: the pattern {str(text)[:60]!r} is not text")
    if kind == "Regex":
        check_pattern(text)
    return {kind: text}


def _text(step: Step, key: str, least: int = 1) -> str:
    value = step.get(key)
    if not isinstance(value, str) or not least <= len(value) <= MAX_CONTENT_CHARS:
        raise MalformedFile(
            f"{TOKENIZER_FILE}: {key} of {step['type'][:40]} must be {least} to {MAX_CONTENT_CHARS} characters"
        )
    return value


def _flag(values: Mapping[str, Any], key: str, *, default: bool) -> bool:
    value = values.get(key)
    if value is not None and not isinstance(value, bool):
        raise MalformedFile(f"{TOKENIZER_FILE}: {key} must be true or false, is {str(value)[:40]!r}")
    return default if value is None else value


def _edges(tokenizer: TokenizerJson) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the post-processor puts before and after a text."""
    found: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    for step in flat_steps(tokenizer.rules.get("post_processor"), "processors"):
        kind = step["type"]
        if kind == "TemplateProcessing":
            found.append(_template_edges(step))
        elif kind in ("BertProcessing", "RobertaProcessing"):
            found.append(((_pair_id(step, "cls"),), (_pair_id(step, "sep"),)))
        elif kind != "ByteLevel":  # which moves offsets only
            raise UnsupportedModel(f"{TOKENIZER_FILE} ends with the rule {kind[:40]!r}, which is not supported")
    if len(found) > 1:
        raise UnsupportedModel(f"{TOKENIZER_FILE}: more than one post-processor adds tokens to a text")
    return found[0] if found else ((), ())


def _pair_id(step: Step, key: str) -> int:
    pair = step.get(key)
    if not isinstance(pair, list) or len(pair) != 2 or not _is_id(pair[1]):
        raise MalformedFile(f"{TOKENIZER_FILE}: {key} of {step['type'][:40]} is not a token with its id")
    return int(pair[1])


def _template_edges(step: Step) -> tuple[tuple[int, ...], tuple[int, ...]]:
    parts, tokens = step.get("single"), step.get("special_tokens") or {}
    if not isinstance(parts, list) or not isinstance(tokens, Mapping) or len(parts) > MAX_STEPS:
        raise MalformedFile(f"{TOKENIZER_FILE}: a TemplateProcessing needs a list of parts, and its special tokens")
    sides: list[list[int]] = [[]]
    for part in parts:
        name = part.get("SpecialToken") if isinstance(part, Mapping) else None
        if isinstance(part, Mapping) and "Sequence" in part:
            sides.append([])
        elif isinstance(name, Mapping) and isinstance(name.get("id"), str):
            sides[-1] += _named_ids(tokens, name["id"])
        else:
            raise MalformedFile(f"{TOKENIZER_FILE}: {str(part)[:60]!r} is no part of a template")
    if len(sides) != 2:
        raise UnsupportedModel(f"{TOKENIZER_FILE}: its post-processor does not keep a text once")
    return tuple(sides[0]), tuple(sides[1])


def _named_ids(tokens: Mapping[str, Any], name: str) -> Sequence[int]:
    token = tokens.get(name)
    ids = token.get("ids") if isinstance(token, Mapping) else None
    if not isinstance(ids, list) or len(ids) > MAX_STEPS or not all(map(_is_id, ids)):
        raise MalformedFile(f"{TOKENIZER_FILE}: the post-processor's token {name[:40]!r} has no ids")
    return ids


def _is_id(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 31
