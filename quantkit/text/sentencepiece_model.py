"""SentencePiece's `tokenizer.model`: a small, strict reader and writer of the protobuf message `ModelProto`.

    ModelProto      1 repeated SentencePiece, 2 TrainerSpec, 3 NormalizerSpec
    SentencePiece   1 piece (string), 2 score (float), 3 type (enum, default 1 = normal)
    TrainerSpec     3 model_type (1 unigram, 2 BPE, 3 word, 4 char), 4 vocab_size, 24 treat_whitespace_as_suffix,
                    35 byte_fallback,
                    40 unk_id, 41 bos_id, 42 eos_id, 43 pad_id, 45 unk_piece, 46 bos_piece, 47 eos_piece
    NormalizerSpec  1 name, 2 precompiled_charsmap, 3 add_dummy_prefix, 4 remove_extra_whitespaces,
                    5 escape_whitespaces

A message is a run of fields: varint (number * 8 + wire type), then a varint (0), 8 bytes (1), a varint length and that
many bytes (2), or 4 bytes (5). Source: `sentencepiece_model.proto` and the protobuf encoding guide.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

import numpy as np

from quantkit.errors import MalformedFile, UnsupportedModel

WORD_BOUNDARY = "\u2581"
"""How SentencePiece writes a space inside a piece."""
MAX_MODEL_BYTES = 1 << 26
MAX_PIECE_BYTES = 1 << 12
BPE = 2
BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")
"""The text of a piece that stands for one byte."""

_FieldValue = int | bytes


class TokenKind(IntEnum):
    """What a token is, in SentencePiece's and GGUF's own numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class SentencePieceModel:
    """What quantkit needs of a BPE `tokenizer.model`.

    pieces, scores, kinds: one entry per token id. bos_id: None where the model has none.
    add_dummy_prefix: a space is put before the text. normalizer: the rule's name, "identity" when text is kept as
    it is (that is what GGUF can express).
    """

    pieces: tuple[str, ...]
    scores: tuple[float, ...]
    kinds: tuple[TokenKind, ...]
    unk_id: int
    bos_id: int | None
    add_dummy_prefix: bool
    normalizer: str


@lru_cache(maxsize=1)
def parse_model(data: bytes, where: str) -> SentencePieceModel:
    """Read a serialized ModelProto; `where` begins every message.

    The last answer is kept: a plan for many targets asks for the same 73 000 pieces once per target.

    Raises:
        MalformedFile: not a ModelProto, or pieces that contradict each other.
        UnsupportedModel: not a BPE model.
    """
    if len(data) > MAX_MODEL_BYTES:
        raise MalformedFile(f"{where} has {len(data):,} bytes; the limit for such a file is {MAX_MODEL_BYTES:,}")
    pieces: list[tuple[str, bytes, TokenKind]] = []
    specs: dict[int, dict[int, _FieldValue]] = {2: {}, 3: {}}
    for number, value in _fields(data, where):
        if number == 1:
            pieces.append(_piece(_message(value, where), f"{where}: piece {len(pieces)}"))
        elif number in specs:
            if specs[number]:
                raise MalformedFile(f"{where}: field {number} stands twice")
            specs[number] = dict(_fields(_message(value, where), where))
    if not pieces:
        raise MalformedFile(f"{where} holds no pieces; it is not a SentencePiece model")
    texts, scores, kinds = zip(*pieces, strict=True)
    _check_texts(texts, kinds, where)
    if TokenKind.BYTE in kinds:  # SentencePiece then has no use for a piece that is NUL, and says so on stderr
        kinds = tuple(TokenKind.UNUSED if text == "\0" else kind for text, kind in zip(texts, kinds, strict=True))
    trainer, normalizer = specs[2], specs[3]
    if trainer.get(3, 1) != BPE:
        raise UnsupportedModel(f"{where} is not a BPE model; only SentencePiece BPE is supported")
    if trainer.get(24, 0) or not normalizer.get(5, 1):
        raise UnsupportedModel(f"{where} writes spaces otherwise than as U+2581 before a word, which is not supported")
    unknown = [i for i, kind in enumerate(kinds) if kind is TokenKind.UNKNOWN]
    if len(unknown) != 1:
        raise MalformedFile(f"{where} has {len(unknown)} unknown pieces; there must be one")
    return SentencePieceModel(
        pieces=texts,
        scores=_scores(b"".join(scores), where),
        kinds=kinds,
        unk_id=unknown[0],
        bos_id=_token_id(trainer.get(41, 1), len(pieces)),
        add_dummy_prefix=bool(normalizer.get(3, 1)),
        normalizer=_normalizer_name(normalizer, where),
    )


def model_bytes(model: SentencePieceModel) -> bytes:
    """Serialize `model` so that the `sentencepiece` package loads it and encodes with it."""
    parts = []
    for piece, score, kind in zip(model.pieces, model.scores, model.kinds, strict=True):
        body = _bytes_field(1, piece.encode("utf-8")) + b"\x15" + struct.pack("<f", score)
        parts.append(_bytes_field(1, body if kind is TokenKind.NORMAL else body + _int_field(3, kind)))
    byte_fallback = TokenKind.BYTE in model.kinds
    trainer = [_int_field(3, BPE), _int_field(4, len(model.pieces)), _int_field(35, byte_fallback)]
    trainer += [_int_field(40, model.unk_id), _int_field(41, _NO_ID if model.bos_id is None else model.bos_id)]
    trainer.append(_bytes_field(45, model.pieces[model.unk_id].encode("utf-8")))
    if model.bos_id is not None:
        trainer.append(_bytes_field(46, model.pieces[model.bos_id].encode("utf-8")))
    normalizer = _bytes_field(1, b"identity") + _int_field(3, model.add_dummy_prefix) + _int_field(4, 0)
    return b"".join([*parts, _bytes_field(2, b"".join(trainer)), _bytes_field(3, normalizer)])


_NO_ID = (1 << 64) - 1  # -1, as protobuf writes a negative int32


def _piece(data: bytes, where: str) -> tuple[str, bytes, TokenKind]:
    """Text, the four bytes of the score, and the kind of one piece."""
    size = len(data)
    if 7 < size < 135 and data[0] == 0x0A and data[1] == size - 7 and data[-5] == 0x15:
        return _text(data[2:-5], where), data[-4:], TokenKind.NORMAL  # how nearly every piece is written
    piece, score, kind = b"", bytes(4), 1
    for number, value in _fields(data, where):
        if number == 1:
            piece = _message(value, where)
        elif number == 2:
            score = _message(value, where)
        elif number == 3:
            kind = value if isinstance(value, int) else 0
    if len(score) != 4:
        raise MalformedFile(f"{where}: the score is not a 32-bit float")
    return _text(piece, where), score, token_kind(kind, where)


def token_kind(number: int, where: str) -> TokenKind:
    """`number` as a token kind; raises `MalformedFile` for anything but 1 to 6."""
    if number not in _KINDS:
        raise MalformedFile(f"{where} is of type {str(number)[:40]}; there are types 1 to 6")
    return _KINDS[number]


def _check_texts(texts: Sequence[str], kinds: Sequence[TokenKind], where: str) -> None:
    """Refuse what SentencePiece refuses: two pieces of one text, a NUL in one, a byte's piece that names no byte."""
    if len(set(texts)) != len(texts):
        twice = Counter(texts).most_common(1)[0][0]
        raise MalformedFile(f"{where}: pieces {texts.index(twice)} and another are both {twice[:40]!r}")
    for index, (text, kind) in enumerate(zip(texts, kinds, strict=True)):
        if kind is TokenKind.BYTE and not BYTE_PIECE.fullmatch(text):
            raise MalformedFile(f"{where}: piece {index} stands for a byte and is {text[:40]!r}, not <0x00> to <0xFF>")
        if "\0" in text and (text != "\0" or kind not in _MAY_BE_NUL):
            raise MalformedFile(f"{where}: piece {index} holds a NUL: {text[:40]!r}")


_MAY_BE_NUL = (TokenKind.NORMAL, TokenKind.USER_DEFINED, TokenKind.UNUSED)
_KINDS = {int(kind): kind for kind in TokenKind}


def _fields(data: bytes, where: str) -> Iterator[tuple[int, _FieldValue]]:
    """The fields of one message, in order: (number, int) for varints, (number, bytes) for the rest."""
    place, end = 0, len(data)
    while place < end:
        key = data[place]
        place += 1
        if key >= 128:  # one byte is the rule; a call for each would double the time
            key, place = _varint(data, place - 1, where)
        number, wire = divmod(key, 8)
        if number == 0 or wire not in (0, 1, 2, 5):
            raise MalformedFile(f"{where}: field {number} of wire type {wire} is not protobuf")
        if wire == 0:
            value, place = _varint(data, place, where)
            yield number, value
            continue
        if wire != 2:
            size = 8 if wire == 1 else 4
        elif place < end and data[place] < 128:
            size, place = data[place], place + 1
        else:
            size, place = _varint(data, place, where)
        if size > end - place:
            raise MalformedFile(f"{where}: field {number} has {size:,} bytes, {end - place:,} left")
        yield number, data[place : place + size]
        place += size


def _varint(data: bytes, place: int, where: str) -> tuple[int, int]:
    """Decode seven bits per byte, lowest first; the last byte is below 128."""
    value, factor = 0, 1
    for position in range(place, min(place + 10, len(data))):
        byte = data[position]
        if byte < 128:
            return value + byte * factor, position + 1
        value += (byte - 128) * factor
        factor *= 128
    raise MalformedFile(f"{where}: a number at byte {place:,} does not end")


def _message(value: _FieldValue, where: str) -> bytes:
    if isinstance(value, int):
        raise MalformedFile(f"{where}: a number where a message should be")
    return value


def _text(data: bytes, where: str) -> str:
    if len(data) > MAX_PIECE_BYTES:
        raise MalformedFile(f"{where} has {len(data):,} bytes; the limit is {MAX_PIECE_BYTES:,}")
    if not data:
        raise MalformedFile(f"{where} has no text")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise MalformedFile(f"{where} is not UTF-8") from None


def _scores(data: bytes, where: str) -> tuple[float, ...]:
    scores = np.frombuffer(data, "<f4")
    bad = np.flatnonzero(~np.isfinite(scores))
    if bad.size:
        raise MalformedFile(f"{where}: piece {bad[0]} has a score that is NaN or infinite")
    return tuple(scores.tolist())


def _token_id(value: _FieldValue, count: int) -> int | None:
    return value if isinstance(value, int) and value < count else None


def _normalizer_name(fields: dict[int, _FieldValue], where: str) -> str:
    name = fields.get(1, b"")
    changes_text = bool(fields.get(2, b"")) or bool(fields.get(4, 1))
    label = _text(_message(name, where) or b"unnamed", where)
    return label if changes_text else "identity"


def _varint_bytes(value: int) -> bytes:
    digits: list[int] = []
    while value >= 128:
        value, digit = divmod(value, 128)
        digits.append(digit + 128)
    return bytes([*digits, value])


def _int_field(number: int, value: int) -> bytes:
    return _varint_bytes(number * 8) + _varint_bytes(int(value))


def _bytes_field(number: int, value: bytes) -> bytes:
    return _varint_bytes(number * 8 + 2) + _varint_bytes(len(value)) + value


def joined_pairs(ids: Mapping[str, int], wholes: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Ids of every two of the pieces `ids` that together are one of `wholes`: what SentencePiece may join."""
    for whole in wholes:
        for cut in range(1, len(whole)):
            left, right = ids.get(whole[:cut]), ids.get(whole[cut:])
            if left is not None and right is not None:
                yield left, right
