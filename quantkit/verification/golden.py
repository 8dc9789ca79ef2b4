"""Golden files: what is recorded once of the original model, that every artifact made from it is held to.

    offset  size                    little-endian
    0       8                       b"QKGOLDEN"
    8       4                       uint32 version
    12      4                       uint32 n, length of the header
    16      n                       header, JSON in UTF-8
    16 + n  4 * sum(T_i) * V        float32 logits of each prompt in the header's order, [T_i, V], nothing between
            s                       arrays of sparse attention, where it was recorded
    end-32  32                      SHA-256 of everything before

Header: `command` that records it anew; `spec`, every field of the model; `quantized`, whether it was recorded from a
quantized model, which is no original; `text`, facts of the tokenizer and the files beside it; `prompts` (name, text,
token_ids); `tensors`, facts of every tensor, and `folded`, the digests of those that folding changes; `rounding`, what
round-to-nearest of the original costs; `source` (name, size and sha256 of the weight files); maybe `sparse`, see
`quantkit.verification.sparse.section`.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np

from quantkit.errors import GoldenMismatch, IncompleteFile, MalformedFile
from quantkit.files.digest import PIECE
from quantkit.files.json_file import parse_json
from quantkit.files.source_file import SourceFile
from quantkit.models.spec import ModelSpec
from quantkit.verification.prompts import Prompt
from quantkit.verification.sparse import section
from quantkit.verification.sparse.facts import SparseFacts
from quantkit.verification.steps.identity import TextFacts, spec_from_json
from quantkit.verification.steps.limits import RoundingCost
from quantkit.verification.weight_facts import WeightFacts

MAGIC = b"QKGOLDEN"
VERSION = 2
COMMAND = "quantkit golden MODEL --out FILE"
LOGITS_DTYPE = np.dtype("<f4")
FRONT = struct.Struct("<8sII")
DIGEST_BYTES = 32

_MAX_HEADER_BYTES = 256 << 20
_HINT = f"record it again from the original model: {COMMAND}"


class RecordedLogits(Sequence[np.ndarray]):
    """The logits of each prompt, float32 [T, V], read from the file when they are asked for."""

    def __init__(self, source: SourceFile, start: int, shapes: Sequence[tuple[int, int]]) -> None:
        self._source = source
        self._shapes = shapes
        self._starts = [start]
        for rows, columns in shapes:
            self._starts.append(self._starts[-1] + LOGITS_DTYPE.itemsize * rows * columns)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | Sequence[np.ndarray]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        start, stop = self._starts[place], self._starts[place + 1]
        data = self._source.read(start, stop - start)
        return np.frombuffer(data.tobytes(), LOGITS_DTYPE).reshape(self._shapes[place])

    def __len__(self) -> int:
        return len(self._shapes)


@dataclass(frozen=True, slots=True, eq=False)
class Golden:
    """A golden file that has been read and checked; see the module's docstring.

    tensors: by Hugging Face name. folded: digests by the folded model's names, of tensors that folding changes.
    logits: one float32 array [len(token_ids), vocab_size] per prompt, read when it is taken.
    sparse: what it does when it attends sparsely; None where that was not recorded.
    """

    spec: ModelSpec
    quantized: bool
    text: TextFacts
    source: Sequence[Mapping[str, Any]]
    tensors: Mapping[str, WeightFacts]
    folded: Mapping[str, Mapping[str, str]]
    rounding: Sequence[RoundingCost]
    prompts: tuple[Prompt, ...]
    logits: Sequence[np.ndarray]
    sparse: SparseFacts | None = None


def read_golden(path: Path) -> Golden:
    """Read a golden file, strictly.

    Raises:
        GoldenMismatch: it is of another version; the hint says how to make it anew.
        IncompleteFile: it ends before what its header promises.
        MalformedFile: it is no golden file, or its bytes are not those that were written.
        IncompleteCheckpoint, ReadFailed, SourceChanged: it cannot be read.
    """
    source = SourceFile.open(path)
    if source.size < FRONT.size:
        raise IncompleteFile(f"{path} has {source.size} bytes; a golden file begins with {FRONT.size}", hint=_HINT)
    magic, version, length = FRONT.unpack(source.read(0, FRONT.size).tobytes())
    if magic != MAGIC:
        raise MalformedFile(f"{path} is not a golden file", hint=f"make one: {COMMAND}")
    if version != VERSION:
        raise GoldenMismatch(f"{path} is a golden file of version {version}, this is version {VERSION}", hint=_HINT)
    start = FRONT.size + length
    if length > _MAX_HEADER_BYTES:
        raise MalformedFile(f"{path}: a header of {length:,} bytes; the limit is {_MAX_HEADER_BYTES:,}", hint=_HINT)
    if source.size < start + DIGEST_BYTES:
        raise IncompleteFile(f"{path} ends inside its header", hint=_HINT)
    header = parse_json(source.read(FRONT.size, length).tobytes(), f"{path}: header")
    golden = _parse_header(header, f"{path}: header", source, start)
    rows = sum(len(prompt.token_ids) for prompt in golden.prompts)
    end = start + LOGITS_DTYPE.itemsize * rows * golden.spec.vocab_size
    sparse = section.checked(header, golden.spec, f"{path}: header")
    arrays = () if sparse is None else section.arrays(sparse, golden.spec)
    expected = end + sum(array.nbytes for array in arrays) + DIGEST_BYTES
    if source.size != expected:
        kind = IncompleteFile if source.size < expected else MalformedFile
        raise kind(f"{path} has {source.size:,} bytes, its header promises {expected:,}", hint=_HINT)
    if _digest(source) != source.read(source.size - DIGEST_BYTES, DIGEST_BYTES).tobytes():
        raise MalformedFile(f"{path} is damaged: its SHA-256 does not match", hint=_HINT)
    return golden if sparse is None else replace(golden, sparse=section.read_facts(sparse, golden.spec, source, end))


def _digest(source: SourceFile) -> bytes:
    sha256, end = hashlib.sha256(), source.size - DIGEST_BYTES
    for start in range(0, end, PIECE):
        sha256.update(source.read(start, min(PIECE, end - start)).data)
    return sha256.digest()


def _parse_header(header: Mapping[str, Any], where: str, source: SourceFile, start: int) -> Golden:
    kinds = {"prompts": list, "source": list, "tensors": dict, "folded": dict, "rounding": list, "text": dict}
    if not all(isinstance(header.get(key), kind) for key, kind in kinds.items()) or not header["prompts"]:
        raise MalformedFile(f"{where}: prompts, tensors, text or another part is missing", hint=_HINT)
    spec = spec_from_json(header.get("spec"), where)
    if not all(isinstance(entry, dict) for entry in header["source"]):
        raise MalformedFile(f"{where}: source must be a list of objects", hint=_HINT)
    prompts = tuple(_parse_prompt(entry, spec.vocab_size, where) for entry in header["prompts"])
    tensors = {name: WeightFacts.from_json(entry, where) for name, entry in header["tensors"].items()}
    return Golden(
        spec=spec,
        quantized=header.get("quantized") is not False,
        text=_parse_text(header["text"], where),
        source=header["source"],
        tensors=tensors,
        folded={name: dict(digests) for name, digests in header["folded"].items() if isinstance(digests, dict)},
        rounding=tuple(RoundingCost.from_json(entry, len(prompts), where) for entry in header["rounding"]),
        prompts=prompts,
        logits=RecordedLogits(source, start, [(len(prompt.token_ids), spec.vocab_size) for prompt in prompts]),
    )


def _parse_text(data: Mapping[str, Any], where: str) -> TextFacts:
    try:
        return TextFacts(data["vocabulary"], data["template"], dict(data["rules"]), dict(data["files"]))
    except (KeyError, TypeError, ValueError):
        raise MalformedFile(f"{where}: what is recorded of the tokenizer is damaged", hint=_HINT) from None


def _parse_prompt(entry: object, vocabulary: int, where: str) -> Prompt:
    fields = entry if isinstance(entry, dict) else {}
    name, text, ids = fields.get("name"), fields.get("text"), fields.get("token_ids")
    if not isinstance(name, str) or not isinstance(text, str) or not isinstance(ids, list) or not ids:
        raise MalformedFile(f"{where}: a prompt needs a name, a text and token_ids", hint=_HINT)
    if not all(type(token) is int and 0 <= token < vocabulary for token in ids):
        raise MalformedFile(f"{where}: prompt {name[:80]!r} has token ids outside the vocabulary", hint=_HINT)
    return Prompt(name, text, tuple(ids))
