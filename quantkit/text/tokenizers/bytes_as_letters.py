"""Byte-level BPE writes every byte as one letter: those that print as themselves, the rest from U+0100 on.

Source: `bytes_to_unicode` of GPT-2's encoder.
"""

from __future__ import annotations

from collections.abc import Mapping

_PRINTING = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))


def _letters() -> dict[int, str]:
    rest = [byte for byte in range(256) if byte not in _PRINTING]
    return {byte: chr(byte) for byte in _PRINTING} | {byte: chr(0x100 + place) for place, byte in enumerate(rest)}


LETTERS: Mapping[int, str] = _letters()
"""Byte to letter."""
BYTES: Mapping[str, int] = {letter: byte for byte, letter in LETTERS.items()}
"""Letter to byte."""


def bytes_of_piece(piece: str) -> bytes:
    """What a piece stands for; a piece with other letters in it stands for itself, as in the `tokenizers` library."""
    try:
        return bytes(BYTES[letter] for letter in piece)
    except KeyError:
        return piece.encode("utf-8", "surrogatepass")
