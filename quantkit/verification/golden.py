"""Golden files: the logits of the original model, recorded once, that every artifact made from it is held to.

    offset  size                    little-endian
    0       8                       b"QKGOLDEN"
    8       4                       uint32 version
    12      4                       uint32 n, length of the header
    16      n                       header, JSON in UTF-8
    16 + n  4 * sum(T_i) * V        float32 logits of each prompt in the header's order, [T_i, V], nothing between
    end-32  32                      SHA-256 of everything before

Header: `command` that records it anew, `model` (facts that survive quantizing and folding), `prompts` (name, text,
token_ids), `source` (name, size and sha256 of the weight files that the logits were computed from).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.artifacts.publishing import source_digest
from quantkit.errors import BadOption, GoldenMismatch, IncompleteFile, MalformedFile, MissingDependency
from quantkit.files.json_file import parse_json
from quantkit.files.planned_files import PlannedArtifact, PlannedFile, PlannedTensor, Unit
from quantkit.files.source_file import SourceFile
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import MAX_DIMENSION, ModelSpec
from quantkit.verification.prompts import Prompt

MAGIC = b"QKGOLDEN"
VERSION = 1
COMMAND = "quantkit golden MODEL --out FILE"
LOGITS_DTYPE = np.dtype("<f4")

_FRONT = struct.Struct("<8sII")
_DIGEST_BYTES = 32
_MAX_HEADER_BYTES = 64 << 20
_HINT = f"record it again from the original model: {COMMAND}"


@dataclass(frozen=True, slots=True, eq=False)
class Golden:
    """A golden file that has been read and checked.

    model: vocab_size, hidden_size and num_hidden_layers. source: name, size and sha256 of each weight file.
    logits: one float32 array [len(token_ids), vocab_size] per prompt.
    """

    model: Mapping[str, int]
    source: Sequence[Mapping[str, Any]]
    prompts: tuple[Prompt, ...]
    logits: tuple[np.ndarray, ...]

    def check_model(self, spec: ModelSpec, *, where: str) -> None:
        """Raise `GoldenMismatch` when these cannot be the logits of a model with this `spec`."""
        for fact, value in model_facts(spec).items():
            if self.model[fact] != value:
                raise GoldenMismatch(
                    f"{where}: {fact} is {value}, the golden file is of a model with {self.model[fact]}", hint=_HINT
                )


def model_facts(spec: ModelSpec) -> dict[str, int]:
    """What identifies a model and survives quantizing and folding."""
    return {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": spec.num_hidden_layers,
    }


def record(checkpoint: Checkpoint, prompts: Sequence[Prompt]) -> PlannedArtifact:
    """Plan the golden file of `checkpoint`: float32 logits by `quantkit/models/torch_model.py`, on one thread so that
    they repeat.

    The weight files are hashed now, the logits computed when the file is written; that takes 4 bytes of memory per
    weight.

    Raises:
        MissingDependency: torch is not installed.
        BadOption: no prompts, or one without tokens.
        GoldenMismatch: a prompt with tokens outside the vocabulary.
    """
    if importlib.util.find_spec("torch") is None:
        raise MissingDependency("recording golden logits needs torch", hint="pip install 'quantkit[torch]'")
    if not prompts:
        raise BadOption("no prompts to record")
    vocabulary = checkpoint.spec.vocab_size
    for prompt in prompts:
        if not prompt.token_ids:
            raise BadOption(f"prompt {prompt.name!r} has no tokens")
        if not all(0 <= token < vocabulary for token in prompt.token_ids):
            raise GoldenMismatch(f"prompt {prompt.name!r} has tokens outside the vocabulary of {vocabulary}")
    header = json.dumps(
        {
            "command": COMMAND,
            "model": model_facts(checkpoint.spec),
            "prompts": [asdict(prompt) for prompt in prompts],
            "source": source_digest(checkpoint.inputs),
        },
        sort_keys=True,
    ).encode()
    front = _FRONT.pack(MAGIC, VERSION, len(header)) + header
    shapes = [(len(prompt.token_ids), vocabulary) for prompt in prompts]
    tensors = tuple(
        PlannedTensor(prompt.name, "float32", (rows, columns), LOGITS_DTYPE.itemsize * rows * columns)
        for prompt, (rows, columns) in zip(prompts, shapes, strict=True)
    )
    size = len(front) + sum(tensor.nbytes for tensor in tensors) + _DIGEST_BYTES
    unit = Unit("golden", size, lambda: _produce(front, checkpoint, prompts))
    return PlannedArtifact("golden", False, (PlannedFile("golden.bin", (unit,)),), tensors, {"command": COMMAND})


def _produce(front: bytes, checkpoint: Checkpoint, prompts: Sequence[Prompt]) -> Iterator[bytes]:
    sha256 = hashlib.sha256(front)
    yield front
    for logits in _compute(checkpoint, prompts):
        data = logits.astype(LOGITS_DTYPE, copy=False).tobytes()
        sha256.update(data)
        yield data
    yield sha256.digest()


def _compute(checkpoint: Checkpoint, prompts: Sequence[Prompt]) -> Iterator[np.ndarray]:
    import torch  # noqa: PLC0415 - heavy, wanted only here

    from quantkit.models.loading import load_model  # noqa: PLC0415 - imports torch
    from quantkit.threads import single_threaded_torch  # noqa: PLC0415

    model = load_model(checkpoint)
    for prompt in prompts:
        with single_threaded_torch(), torch.no_grad():
            logits = model(torch.tensor([prompt.token_ids]))[0].numpy()
        yield logits


def read_golden(path: Path) -> Golden:
    """Read a golden file, strictly.

    Raises:
        GoldenMismatch: it is of another version; the hint says how to make it anew.
        IncompleteFile: it ends before what its header promises.
        MalformedFile: it is no golden file, or its bytes are not those that were written.
        IncompleteCheckpoint, ReadFailed, SourceChanged: it cannot be read.
    """
    source = SourceFile.open(path)
    if source.size < _FRONT.size:
        raise IncompleteFile(f"{path} has {source.size} bytes; a golden file begins with {_FRONT.size}", hint=_HINT)
    magic, version, length = _FRONT.unpack(source.read(0, _FRONT.size).tobytes())
    if magic != MAGIC:
        raise MalformedFile(f"{path} is not a golden file", hint=f"make one: {COMMAND}")
    if version != VERSION:
        raise GoldenMismatch(f"{path} is a golden file of version {version}, this is version {VERSION}", hint=_HINT)
    start = _FRONT.size + length
    if length > _MAX_HEADER_BYTES:
        raise MalformedFile(f"{path}: a header of {length:,} bytes; the limit is {_MAX_HEADER_BYTES:,}", hint=_HINT)
    if source.size < start + _DIGEST_BYTES:
        raise IncompleteFile(f"{path} ends inside its header", hint=_HINT)
    model, prompts, inputs = _parse_header(source.read(_FRONT.size, length).tobytes(), f"{path}: header")
    shapes = [(len(prompt.token_ids), model["vocab_size"]) for prompt in prompts]
    expected = start + sum(LOGITS_DTYPE.itemsize * rows * columns for rows, columns in shapes) + _DIGEST_BYTES
    if source.size != expected:
        kind = IncompleteFile if source.size < expected else MalformedFile
        raise kind(f"{path} has {source.size:,} bytes, its header promises {expected:,}", hint=_HINT)
    data = source.read(0, source.size)
    if hashlib.sha256(data[:-_DIGEST_BYTES].data).digest() != data[-_DIGEST_BYTES:].tobytes():
        raise MalformedFile(f"{path} is damaged: its SHA-256 does not match", hint=_HINT)
    return Golden(model, inputs, prompts, _split(data[start:-_DIGEST_BYTES], shapes))


def _split(data: np.ndarray, shapes: Sequence[tuple[int, int]]) -> tuple[np.ndarray, ...]:
    """The logits of each prompt; copied, because the header's length may leave them at an unaligned offset."""
    values = np.frombuffer(data.tobytes(), LOGITS_DTYPE)
    ends = np.cumsum([rows * columns for rows, columns in shapes])
    return tuple(part.reshape(shape) for part, shape in zip(np.split(values, ends[:-1]), shapes, strict=True))


def _parse_header(data: bytes, where: str) -> tuple[dict[str, int], tuple[Prompt, ...], list[dict[str, Any]]]:
    header = parse_json(data, where)
    facts, entries, inputs = header.get("model"), header.get("prompts"), header.get("source")
    if not isinstance(facts, dict) or not isinstance(entries, list) or not isinstance(inputs, list) or not entries:
        raise MalformedFile(f"{where}: model, prompts or source is missing", hint=_HINT)
    model = {}
    for name in ("vocab_size", "hidden_size", "num_hidden_layers"):
        value = facts.get(name)
        if type(value) is not int or not 1 <= value <= MAX_DIMENSION:
            raise MalformedFile(f"{where}: {name} must be an integer from 1 to {MAX_DIMENSION}", hint=_HINT)
        model[name] = value
    if not all(isinstance(entry, dict) for entry in inputs):
        raise MalformedFile(f"{where}: source must be a list of objects", hint=_HINT)
    return model, tuple(_parse_prompt(entry, model["vocab_size"], where) for entry in entries), inputs


def _parse_prompt(entry: object, vocabulary: int, where: str) -> Prompt:
    fields = entry if isinstance(entry, dict) else {}
    name, text, ids = fields.get("name"), fields.get("text"), fields.get("token_ids")
    if not isinstance(name, str) or not isinstance(text, str) or not isinstance(ids, list) or not ids:
        raise MalformedFile(f"{where}: a prompt needs a name, a text and token_ids", hint=_HINT)
    if not all(type(token) is int and 0 <= token < vocabulary for token in ids):
        raise MalformedFile(f"{where}: prompt {name[:80]!r} has token ids outside the vocabulary", hint=_HINT)
    return Prompt(name, text, tuple(ids))
