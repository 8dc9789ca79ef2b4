"""Regular expressions of a tokenizer.json: which ones the library may be given.

The library matches by backtracking. A pattern such as `(a+)+b` takes it time that doubles with every character, and
nothing stops it but a limit of the engine inside that ends the whole thread. So what repeats must not repeat itself: a
group that holds an unbounded repetition may not be repeated without bound, and few unbounded repetitions may follow
each other. The patterns of published tokenizers are all of that kind.
"""

from __future__ import annotations

import re

from quantkit.errors import MalformedFile, UnsupportedModel
from quantkit.text.tokenizer_files import TOKENIZER_FILE

MAX_PATTERN_CHARS = 8192
MAX_REPETITION = 1000
MAX_UNBOUNDED = 3
"""Unbounded repetitions in one alternative: with n characters, matching takes at most n to that power, and patterns of
this kind stop far earlier."""

_ATOM = re.compile(
    r"""
      \\[pP]\{\^?[A-Za-z_&]{1,32}\}            # a class of characters by name
    | \\[^\W\d_]                               # \s \S \d \w \r \n \t ...
    | \\[^\w]                                  # an escaped sign
    | \[\^?\]?(?: \\[pP]\{\^?[A-Za-z_&]{1,32}\} | \\. | [^\]\\\[] )*\]   # a set, without sets inside
    | [^\\\[\](){}*+?|]                        # any other character
    """,
    re.VERBOSE | re.DOTALL,
)
_OPEN = re.compile(r"\((?:\?(?:i?:|=|!))?")
_QUANTIFIER = re.compile(r"(?:[*+?]|\{(\d{1,4})?(,(\d{1,4})?)?\})[+?]?")
_FORBIDDEN_ESCAPES = frozenset("gGkKXyY")
"""Back references, calls and the like, with which matching has no bound."""


def check_pattern(pattern: str) -> None:
    """Refuse a pattern that may match without end, or that is none.

    Raises:
        MalformedFile: not a regular expression, or too long.
        UnsupportedModel: it repeats what repeats, refers back, or looks behind.
    """
    where = f"{TOKENIZER_FILE}: the pattern {pattern[:60]!r}"
    if not pattern or len(pattern) > MAX_PATTERN_CHARS:
        raise MalformedFile(f"{where} has {len(pattern):,} characters; the limit is {MAX_PATTERN_CHARS:,}, the least 1")
    place, stack = 0, [_Group()]
    while place < len(pattern):
        opened = _OPEN.match(pattern, place)
        if opened:
            stack.append(_Group())
            place = opened.end()
        elif pattern[place] == "|":
            stack[-1].alternative()
            place += 1
        elif pattern[place] == ")":
            if len(stack) == 1:
                raise MalformedFile(f"{where} closes a group that is not open")
            inner = stack.pop().worst
            place, unbounded = _repeated(pattern, place + 1, where)
            if unbounded and inner:
                raise UnsupportedModel(f"{where} repeats a group that repeats, which may take for ever")
            stack[-1].count += inner + unbounded
        else:
            atom = _ATOM.match(pattern, place)
            if atom is None or (atom[0][0] == "\\" and atom[0][1] in _FORBIDDEN_ESCAPES):
                raise UnsupportedModel(f"{where} has a part that is not known, at {pattern[place : place + 12]!r}")
            place, unbounded = _repeated(pattern, atom.end(), where)
            stack[-1].count += unbounded
        if stack[-1].count > MAX_UNBOUNDED:
            raise UnsupportedModel(f"{where} repeats more than {MAX_UNBOUNDED} parts in one alternative")
    if len(stack) > 1:
        raise MalformedFile(f"{where} leaves a group open")


class _Group:
    """Unbounded repetitions in the alternative that is being read, and in the worst one before it."""

    def __init__(self) -> None:
        self.count = 0
        self._before = 0

    @property
    def worst(self) -> int:
        return max(self.count, self._before)

    def alternative(self) -> None:
        self._before, self.count = self.worst, 0


def _repeated(pattern: str, place: int, where: str) -> tuple[int, int]:
    """Where a quantifier at `place` ends, if there is one, and 1 if it has no bound."""
    found = _QUANTIFIER.match(pattern, place)
    if found is None:
        return place, 0
    text = found[0]
    bounds = [int(number) for number in re.findall(r"\d+", text)]
    if any(bound > MAX_REPETITION for bound in bounds) or (text[0] == "{" and not bounds):
        raise UnsupportedModel(f"{where} repeats a part {text} times, which is not supported")
    if _QUANTIFIER.match(pattern, found.end()):
        raise UnsupportedModel(f"{where} has two repetitions in a row")
    return found.end(), int(text[0] in "*+" or (text[0] == "{" and "," in text and text.rstrip("+?").endswith(",}")))
