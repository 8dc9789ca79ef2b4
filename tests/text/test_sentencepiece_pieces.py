"""Pieces that SentencePiece refuses, or complains of on stderr, are refused before it sees them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from quantkit.errors import MalformedFile
from quantkit.text.sentencepiece_model import SentencePieceModel, TokenKind, model_bytes, parse_model

ROOT = Path(__file__).resolve().parents[2]
OPEN = """
import sys
from pathlib import Path
from quantkit.text.tokenizer import open_tokenizer
from tests.support.tokenizer_folders import opened
model = (Path(sys.argv[1]) / "tokenizer.model").read_bytes()
tokenizer = open_tokenizer(opened({"tokenizer.model": model}, vocab_size=263, eos_token_id=2))
print(*tokenizer.encode("ab\\0", add_bos=False)[-3:])
"""
Piece = tuple[str, TokenKind]
BYTES: list[Piece] = [(f"<0x{value:02X}>", TokenKind.BYTE) for value in range(256)]
SPECIALS: list[Piece] = [("<unk>", TokenKind.UNKNOWN), ("<s>", TokenKind.CONTROL), ("</s>", TokenKind.CONTROL)]
LETTERS: list[Piece] = [(letter, TokenKind.NORMAL) for letter in "abcd"]


def serialized(place: int, piece: Piece, *, fallback: bool = True) -> bytes:
    pieces = [*SPECIALS, *(BYTES if fallback else []), *LETTERS]
    pieces[place] = piece
    texts, kinds = zip(*pieces, strict=True)
    scores = tuple(-float(i) for i in range(len(texts)))
    return model_bytes(
        SentencePieceModel(
            pieces=texts, scores=scores, kinds=kinds, unk_id=0, bos_id=1, add_dummy_prefix=True, normalizer="identity"
        )
    )


@pytest.mark.parametrize("text", ["\0", "x", "<0xab>", "<0x000>", "0x41", "<0xGG>", " <0x41>", "<0x41>\n"])
def test_a_piece_for_a_byte_names_a_byte(text: str) -> None:
    with pytest.raises(MalformedFile, match="m: piece 68 stands for a byte and is"):
        parse_model(serialized(68, (text, TokenKind.BYTE)), "m")


@pytest.mark.parametrize(
    "piece", [("a\0b", TokenKind.NORMAL), ("\0\0", TokenKind.USER_DEFINED), ("\0", TokenKind.CONTROL)]
)
def test_a_nul_in_a_piece_is_refused(piece: Piece) -> None:
    with pytest.raises(MalformedFile, match="m: piece 2 holds a NUL"):
        parse_model(serialized(2, piece), "m")


@pytest.mark.parametrize("text", ["a", "<s>", "</s>", "<unk>", "<0x41>"])
def test_two_pieces_of_one_text_are_refused(text: str) -> None:
    with pytest.raises(MalformedFile, match="and another are both"):
        parse_model(serialized(-1, (text, TokenKind.NORMAL)), "m")


@pytest.mark.parametrize("kind", [TokenKind.NORMAL, TokenKind.USER_DEFINED])
def test_a_lone_nul_beside_pieces_for_bytes_is_unused_as_sentencepiece_has_it(kind: TokenKind) -> None:
    assert parse_model(serialized(-1, ("\0", kind)), "m").kinds[-1] is TokenKind.UNUSED
    assert parse_model(serialized(-1, ("\0", kind), fallback=False), "m").kinds[-1] is kind


@pytest.mark.parametrize("kind", [TokenKind.NORMAL, TokenKind.USER_DEFINED])
def test_sentencepiece_writes_nothing_of_its_own(kind: TokenKind, tmp_path: Path) -> None:
    """In a process of its own: the library heeds the log level of the whole process."""
    (tmp_path / "tokenizer.model").write_bytes(serialized(-1, ("\0", kind)))
    done = subprocess.run([sys.executable, "-c", OPEN, str(tmp_path)], cwd=ROOT, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.split() == [b"259", b"260", b"3"]  # a, b, and the piece for the byte 0
