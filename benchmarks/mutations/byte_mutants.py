"""Bytes and templates that are damaged: what a bad disk, a cut download or a spiteful hand makes of a file."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from random import Random

from benchmarks.mutations.values import JINJA

_INTEGERS = (0, 1, 2, 8, 9, 12, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
_PIECES = (
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\xc3",
    b"\xed\xa0\x80",
    b'"',
    b"\\",
    b"{",
    b"]",
    b",",
    b"\n",
    b"//",
)
_WORDS = re.compile(r"\{[{%#]-?|-?[%#}]\}|\w+|\s+|.", re.DOTALL)


def damaged_bytes(data: bytes, random: Random, *, reach: int | None = None) -> bytes:
    """`data` with one to four changes among its first `reach` bytes."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        end = min(len(changed), reach or len(changed))
        random.choice(_CHANGES)(changed, random.randint(0, max(0, end - 1)), random)
    return bytes(changed)


def damaged_template(text: str, random: Random) -> str:
    """A Jinja template with one to four words removed, repeated, exchanged, replaced or added."""
    words = _WORDS.findall(text)
    for _ in range(random.choice((1, 1, 2, 4))):
        place = random.randrange(len(words) + 1)
        other = random.randrange(len(words) + 1)
        if random.random() < 0.5:
            words[place:place] = [random.choice(JINJA)]
        elif random.random() < 0.5:
            words[place : place + random.choice((1, 1, 2, 5))] = random.choice(([], [random.choice(JINJA)]))
        else:
            words[place:place] = words[other : other + random.choice((1, 3, 20))] * random.choice((1, 1, 2, 50))
    return "".join(words)


def _flip(data: bytearray, place: int, random: Random) -> None:
    if data:
        data[place] ^= 1 << random.randrange(8)


def _overwrite(data: bytearray, place: int, random: Random) -> None:
    data[place : place + 1] = bytes([random.randrange(256)])


def _truncate(data: bytearray, place: int, _random: Random) -> None:
    del data[place:]


def _insert(data: bytearray, place: int, random: Random) -> None:
    data[place:place] = random.choice((random.choice(_PIECES), random.randbytes(random.choice((1, 4, 100)))))


def _remove(data: bytearray, place: int, random: Random) -> None:
    del data[place : place + random.choice((1, 2, 8, 100))]


def _repeat(data: bytearray, place: int, random: Random) -> None:
    piece = bytes(data[place : place + random.choice((1, 8, 64))])
    data[place:place] = piece * random.choice((1, 2, 500))


def _integer(data: bytearray, place: int, random: Random) -> None:
    """An odd integer of 4 or 8 bytes over what stands there, as in the fields of binary headers."""
    size, value = random.choice((4, 8)), random.choice(_INTEGERS)
    packed = struct.pack("<Q", value)[:size]
    data[place : place + size] = packed


_CHANGES: tuple[Callable[[bytearray, int, Random], None], ...] = (
    *(_flip, _flip, _overwrite, _truncate, _insert, _remove, _repeat, _integer),
)
