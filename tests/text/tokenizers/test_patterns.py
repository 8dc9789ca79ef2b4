"""Regular expressions of strangers: those of published tokenizers pass, those that may match for ever do not."""

from __future__ import annotations

import pytest

from quantkit.errors import MalformedFile, QuantkitError, UnsupportedModel
from quantkit.text.tokenizers.patterns import MAX_PATTERN_CHARS, check_pattern
from quantkit.text.tokenizers.splitting import SPLITTINGS

PUBLISHED = [
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}",
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    r"(?:<sentinel:[0-9]+>)",
    r"\d{1,3}(?=(?:\d{3})*\b)",
    r" ?[^(\s|.,!?…。，、।۔،)]+",
    r"[\p{P}\$\+<=>\^~\|`]+",
    r"[0-9][0-9][0-9]",
    "[一-龥぀-ゟ゠-ヿ]+",
    "[\r\n]",
    r"\s?\p{L}+",
    r"\w+|[^\w\s]+|\s+",
    "▁",
]


@pytest.mark.parametrize("pattern", PUBLISHED)
def test_patterns_of_published_tokenizers_are_taken(pattern: str) -> None:
    check_pattern(pattern)


def test_every_pattern_of_the_table_is_taken() -> None:
    for splitting in SPLITTINGS:
        for step in splitting.cuts:
            if step["type"] == "Split":
                check_pattern(step["pattern"]["Regex"])


REFUSED: dict[str, tuple[str, type[QuantkitError], str]] = {
    "a repeated repetition": ("(a+)+$", UnsupportedModel, "for ever"),
    "one that is deeper": ("((?:ab?|c*)d)*", UnsupportedModel, "for ever"),
    "one in another alternative": ("(?:x|a*)+b", UnsupportedModel, "for ever"),
    "a repetition without bound of another kind": ("(a{2,}b)*", UnsupportedModel, "for ever"),
    "many in a row": (r"\s*\s*\s*\s*x", UnsupportedModel, "more than 3 parts"),
    "many in groups": (r"(?:a*)(?:b*)(?:c*)(?:d*)", UnsupportedModel, "more than 3 parts"),
    "a back reference": (r"(a)\1", UnsupportedModel, "not known"),
    "a named back reference": (r"(?<n>a)\k<n>", UnsupportedModel, "not known"),
    "looking behind": ("(?<=a)b", UnsupportedModel, "not known"),
    "a call": (r"(a\g<0>?b)", UnsupportedModel, "not known"),
    "a set within a set": ("[a&&[^b]]", UnsupportedModel, "not known"),
    "an atomic group": ("(?>a)", UnsupportedModel, "not known"),
    "an option": ("(?x) a", UnsupportedModel, "not known"),
    "a great repetition": ("a{1000000}", UnsupportedModel, "not known|times"),
    "a repetition of a repetition": ("a{2}{3}", UnsupportedModel, "two repetitions"),
    "a group left open": ("(?:a", MalformedFile, "leaves a group open"),
    "a group that was never open": ("a)", MalformedFile, "not open"),
    "a set left open": ("[a", UnsupportedModel, "not known"),
    "an escape at the end": ("a\\", UnsupportedModel, "not known"),
    "nothing to repeat": ("*a", UnsupportedModel, "not known"),
    "nothing": ("", MalformedFile, "characters"),
    "too much": ("a" * (MAX_PATTERN_CHARS + 1), MalformedFile, "limit"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_patterns_that_may_match_for_ever_are_refused(case: str) -> None:
    pattern, cause, message = REFUSED[case]
    with pytest.raises(cause, match=message) as refusal:
        check_pattern(pattern)
    assert len(str(refusal.value)) < 300
