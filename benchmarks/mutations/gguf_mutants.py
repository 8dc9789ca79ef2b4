"""GGUF files that are damaged: an odd field in a head whose lengths are right, another type, blocks of any bytes."""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from random import Random

from benchmarks.mutations.byte_mutants import damaged_bytes
from benchmarks.mutations.values import KEYS, STRINGS

BYTES_SHARE = 0.3
"""How many mutants are damaged in their bytes instead."""
ALIGNMENT = 32
STRING, ARRAY = 8, 9
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value by its type."""
BLOCKS = {
    **{0: (1, 4), 1: (1, 2), 30: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34)},
    **{10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 20: (32, 18), 23: (256, 136)},
    **{34: (256, 54), 35: (256, 66), 39: (32, 17), 42: (64, 18), 15: (256, 292), 16: (256, 66), 40: (64, 36)},
}
"""Weights and bytes of a block by its type."""
NUMBERS = (0, 1, 2, 3, 5, 7, 8, 31, 32, 33, 63, 64, 255, 256, 1 << 15, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
NUMBERS += (1 << 32, 1 << 53, (1 << 63) - 1, 1 << 63, (1 << 64) - 32, (1 << 64) - 1)
HALVES = (0x7C00, 0xFC00, 0x7E00, 0x0001, 0x8000, 0x7BFF, 0x3C00)
"""float16: infinities, NaN, the smallest, -0, the largest, 1."""
ALIGNMENTS = (0, 1, 8, 13, 16, 64, 4096, 1 << 16, 1 << 17, 1 << 31)


@dataclass(slots=True)
class Info:
    """A tensor's part of the head. shift: what is added to the offset that it should have."""

    name: bytes
    shape: list[int]
    kind: int
    data: bytes
    shift: int = 0


@dataclass(slots=True)
class Pieces:
    """A file taken apart. keys: name, type and the bytes of the value."""

    version: int
    keys: list[tuple[bytes, int, bytes]]
    infos: list[Info]
    more_keys: int = 0
    more_infos: int = 0
    tail: bytes = field(default=b"")


def damaged_gguf(data: bytes, random: Random) -> bytes:
    """One to four changes to a file that is right, as `quantkit` writes it."""
    if random.random() < BYTES_SHARE:
        head = _parsed(data)[1]
        return damaged_bytes(data, random, reach=random.choice((400, head, head, len(data))))
    pieces, _ = _parsed(data)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        with suppress(ValueError, LookupError, OverflowError, struct.error):  # what an earlier change made impossible
            random.choice(_CHANGES)(pieces, random)
    return _written(pieces)


def _parsed(data: bytes) -> tuple[Pieces, int]:
    """The pieces of a file, and where its tensors begin."""
    version, tensors, keys = struct.unpack_from("<IQQ", data, 4)
    place = 24

    def text() -> bytes:
        nonlocal place
        (size,) = struct.unpack_from("<Q", data, place)
        place += 8 + size
        return data[place - size : place]

    def value(kind: int) -> bytes:
        nonlocal place
        start = place
        if kind == STRING:
            text()
        elif kind == ARRAY:
            inner, count = struct.unpack_from("<IQ", data, place)
            place += 12
            if inner == STRING:
                for _ in range(count):
                    text()
            else:
                place += count * SIZES[inner]
        else:
            place += SIZES[kind]
        return data[start:place]

    found = Pieces(version, [], [])
    for _ in range(keys):
        name = text()
        (kind,) = struct.unpack_from("<I", data, place)
        place += 4
        found.keys.append((name, kind, value(kind)))
    offsets = []
    for _ in range(tensors):
        name = text()
        (count,) = struct.unpack_from("<I", data, place)
        *shape, kind, offset = struct.unpack_from(f"<{count}QIQ", data, place + 4)
        place += 16 + 8 * count
        found.infos.append(Info(name, shape, kind, b""))
        offsets.append(offset)
    start = place + -place % ALIGNMENT
    for info, begin, end in zip(found.infos, offsets, [*offsets[1:], len(data) - start], strict=True):
        info.data = data[start + begin : start + end]
    return found, start


def _written(pieces: Pieces) -> bytes:
    counts = ((len(pieces.infos) + pieces.more_infos) % 2**64, (len(pieces.keys) + pieces.more_keys) % 2**64)
    head = [b"GGUF", struct.pack("<IQQ", pieces.version, *counts)]
    head += [_text(name) + struct.pack("<I", kind) + value for name, kind, value in pieces.keys]
    offset = 0
    for info in pieces.infos:
        dims = b"".join(struct.pack("<Q", dim % 2**64) for dim in info.shape)
        head.append(_text(info.name) + struct.pack("<I", len(info.shape)) + dims)
        head.append(struct.pack("<IQ", info.kind, (offset + info.shift) % 2**64))
        offset += len(info.data) + -len(info.data) % ALIGNMENT
    joined = b"".join(head)
    body = b"".join(info.data + bytes(-len(info.data) % ALIGNMENT) for info in pieces.infos)
    return joined + bytes(-len(joined) % ALIGNMENT) + body + pieces.tail


def _text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def _odd_text(random: Random) -> bytes:
    return random.choice((*STRINGS, *KEYS)).encode("utf-8", "surrogatepass")[: random.choice((3, 64, 100_000))]


def _number(random: Random, kind: int) -> bytes:
    return struct.pack("<Q", random.choice(NUMBERS))[: SIZES.get(kind, 4)]


def _key_value(pieces: Pieces, random: Random) -> None:
    """A value of the same type, or of another."""
    place = random.randrange(len(pieces.keys))
    name, kind, value = pieces.keys[place]
    if random.random() < 0.3:
        kind = random.choice((*SIZES, STRING, ARRAY, 13, 99))
        value = random.choice((value, _number(random, kind), _text(_odd_text(random))))
    elif kind == STRING:
        value = _text(_odd_text(random)) if random.random() < 0.7 else _text(damaged_bytes(value[8:], random))
    elif kind == ARRAY:
        inner, count = struct.unpack_from("<IQ", value)
        inner = random.choice((inner, inner, *SIZES, STRING, ARRAY))
        count = random.choice((count, max(0, count - 1), count + 1, *NUMBERS))
        value = struct.pack("<IQ", inner, count) + damaged_bytes(value[12:], random)
    else:
        value = random.choice((_number(random, kind), random.randbytes(len(value))))
    pieces.keys[place] = (name, kind, value)


def _key_name(pieces: Pieces, random: Random) -> None:
    place = random.randrange(len(pieces.keys))
    name, kind, value = pieces.keys[place]
    others = (_odd_text(random), damaged_bytes(name, random), random.choice(pieces.keys)[0], b"minicpm.expert_count")
    pieces.keys[place] = (random.choice(others), kind, value)


def _key_list(pieces: Pieces, random: Random) -> None:
    place = random.randrange(len(pieces.keys))
    if random.random() < 0.5:
        del pieces.keys[place]
    else:
        pieces.keys.insert(random.randrange(len(pieces.keys) + 1), pieces.keys[place])


def _alignment(pieces: Pieces, random: Random) -> None:
    kind = random.choice((4, 4, 5, 6, 7, 10))
    number = struct.pack("<Q", random.choice(ALIGNMENTS))[: SIZES[kind]]
    pieces.keys.insert(0, (b"general.alignment", kind, number))


def _split(pieces: Pieces, random: Random) -> None:
    for name, kind in ((b"split.no", 2), (b"split.count", 2), (b"split.tensors.count", 5)):
        if random.random() < 0.8:
            pieces.keys.append((name, random.choice((kind, kind, 4)), _number(random, kind)))


def _counts(pieces: Pieces, random: Random) -> None:
    if random.random() < 0.3:
        pieces.version = random.choice((0, 1, 2, 4, 99, 3 << 24))
    elif random.random() < 0.5:
        pieces.more_keys = random.choice((-1, 1, *NUMBERS))
    else:
        pieces.more_infos = random.choice((-1, 1, *NUMBERS))


def _info_field(pieces: Pieces, random: Random) -> None:
    info = random.choice(pieces.infos)
    what = random.randrange(4)
    if what == 0:
        info.name = random.choice(
            (_odd_text(random), random.choice(pieces.infos).name, damaged_bytes(info.name, random))
        )
    elif what == 1:
        place = random.randrange(len(info.shape))
        info.shape[place] = random.choice((info.shape[place] * 2, info.shape[place] - 1, *NUMBERS))
    elif what == 2:
        info.shape = random.choice(([], [*info.shape, 1], info.shape[::-1], info.shape * 40, [1 << 32] * 4))
    else:
        info.shift = random.choice((1, 3, 32, -32, 1024, *NUMBERS))


def _info_list(pieces: Pieces, random: Random) -> None:
    place = random.randrange(len(pieces.infos))
    if random.random() < 0.4 and len(pieces.infos) > 1:
        del pieces.infos[place]
    elif random.random() < 0.5:
        pieces.infos.insert(place, replace(pieces.infos[place]))
    else:
        pieces.infos.append(pieces.infos.pop(place))


def _type_alone(pieces: Pieces, random: Random) -> None:
    random.choice(pieces.infos).kind = random.choice((*BLOCKS, 4, 9, 24, 27, 31, 41, 43, 99, 1 << 31))


def _type_with_data(pieces: Pieces, random: Random) -> None:
    """A tensor of another type with as many bytes as that needs: any bytes, which are blocks of any kind."""
    info = random.choice(pieces.infos)
    kind = random.choice(list(BLOCKS))
    elements, size = BLOCKS[kind]
    if info.shape[0] % elements == 0:
        weights = 1
        for dim in info.shape:
            weights *= dim
        info.kind, info.data = kind, random.randbytes(weights // elements * size)


def _blocks(pieces: Pieces, random: Random) -> None:
    """Scales that are no numbers, or any bytes in the place of some blocks."""
    info = random.choice(pieces.infos)
    data = bytearray(info.data)
    if not data:
        return
    _, size = BLOCKS.get(info.kind, (1, 4))
    for _ in range(random.choice((1, 1, 3))):
        start = random.randrange(len(data)) // size * size
        if random.random() < 0.6:
            place = start + random.choice((0, 2, max(0, size - 2), max(0, size - 4)))
            data[place : place + 2] = struct.pack("<H", random.choice(HALVES))
        else:
            count = size * random.choice((1, 1, 8))
            data[start : start + count] = random.randbytes(count)
    info.data = bytes(data[: len(info.data)])


def _length(pieces: Pieces, random: Random) -> None:
    if random.random() < 0.5:
        pieces.tail = random.randbytes(random.choice((1, 8, 31, 32, 1000)))
    else:
        last = pieces.infos[-1]
        last.data = last.data[: random.randrange(len(last.data) + 1)]


_CHANGES: tuple[Callable[[Pieces, Random], None], ...] = (
    *(_key_value, _key_value, _key_value, _key_name, _key_list, _alignment, _split, _counts),
    *(_info_field, _info_field, _info_list, _type_alone, _type_with_data, _type_with_data, _blocks, _blocks, _length),
)
