"""Text in files, plain, JSON lines or Parquet: whole, for training, or as calibration sequences.

A record is a text, or a conversation that the model's chat template turns into one. For calibration records are cut
into sequences of at most `length` tokens, each with its own BOS where the model wants one; of these the wanted number
is taken, spread evenly over the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from quantkit.calibration.samples import CalibrationFile, Source
from quantkit.errors import BadOption, MalformedFile, MissingDependency
from quantkit.files.json_file import parse_json
from quantkit.files.source_file import SourceFile
from quantkit.text.tokenizer import Tokenizer

MAX_FILE_BYTES = 256 << 20
PORTION_CHARS = 1 << 16
"""Most that is tokenized at once: SentencePiece needs hundreds of bytes of memory per character. Plain text is cut into
such portions; of a longer record calibration takes the beginning."""
MIN_RECORDS = 64

Record = str | list[dict[str, str]]
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class TextFile:
    """What is in a file: its records in order, what it is called and what kind it is, SHA-256 of its bytes."""

    path: Path
    kind: str
    digest: str
    records: tuple[Record, ...]

    def texts(self, tokenizer: Tokenizer, records: Sequence[Record] | None = None) -> list[str]:
        """The texts of `records`, of all unless told: conversations by the model's chat template.

        Raises:
            MissingDependency: conversations without jinja2. What `Tokenizer.chats` raises.
        """
        taken = self.records if records is None else records
        conversations = [record for record in taken if not isinstance(record, str)]
        rendered = iter(tokenizer.chats(conversations, add_generation_prompt=False) if conversations else ())
        return [record if isinstance(record, str) else next(rendered) for record in taken]


def read_text_file(path: Path, max_bytes: int = MAX_FILE_BYTES) -> TextFile:
    """Read a file of text.

    Raises:
        BadOption: an unknown kind of file.
        MalformedFile: not UTF-8, or a bad record, with its line.
        MissingDependency: Parquet without pyarrow.
        ReadFailed and others: see `SourceFile`.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise BadOption(f"{path}: text files end in {', '.join(_READERS)}", hint="rename the file to what it is")
    data = SourceFile.open(path).read_all(max_bytes)
    kind = path.suffix[1:].lower().replace("txt", "text")
    return TextFile(path, kind, hashlib.sha256(data).hexdigest(), tuple(reader(data, path)))


def file_sequences(
    tokenizer: Tokenizer, file: CalibrationFile, *, sequences: int, length: int
) -> tuple[Source, list[np.ndarray]]:
    """At most `sequences` sequences of at most `length` tokens from a file, and what it is.

    Raises:
        BadOption: an unknown kind of file, or one without any text.
        MalformedFile: not UTF-8, or a bad record, with its line.
        MissingDependency: Parquet without pyarrow, conversations without jinja2.
        ReadFailed and others: see `SourceFile`.
    """
    found = read_text_file(file.path)
    rows = file_rows(found, tokenizer, sequences=sequences, length=length)
    if not rows:
        raise BadOption(
            f"{file.path}: no text to calibrate on", hint="leave out --calibration to let the model write its own"
        )
    return Source(name=file.path.name, kind=found.kind, digest=found.digest, weight=file.weight), rows


def file_rows(file: TextFile, tokenizer: Tokenizer, *, sequences: int, length: int) -> list[np.ndarray]:
    """At most `sequences` rows of at most `length` tokens, int64, evenly spread over a file; none without any text.

    Raises:
        What `TextFile.texts` raises.
    """
    records = _spread(file.records, max(MIN_RECORDS, 4 * sequences))
    beginnings = [record[:PORTION_CHARS] if isinstance(record, str) else record for record in records]
    rows = [row for text in file.texts(tokenizer, beginnings) for row in _rows(text, tokenizer, length)]
    return _spread(rows, sequences)


def _spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` items, evenly spaced, in their order."""
    taken = min(count, len(items))
    return [items[i * len(items) // taken] for i in range(taken)]


def _rows(text: str, tokenizer: Tokenizer, length: int) -> list[np.ndarray]:
    """Cut a text into rows of `length` tokens; a shorter rest is kept only when there is nothing else."""
    ids = tokenizer.encode(text, add_bos=False)
    start = tokenizer.beginning
    step = length - len(start)
    rows = [np.array(start + ids[i : i + step], np.int64) for i in range(0, len(ids), step)]
    return rows[:-1] if len(rows) > 1 and len(rows[-1]) < length else rows


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MalformedFile(f"{where}: not UTF-8 at byte {error.start}") from None


def _read_text(data: bytes, path: Path) -> list[Record]:
    """Portions of the text that end at a line's end where there is one."""
    text = _decoded(data, str(path))
    portions: list[Record] = []
    start = 0
    while start < len(text):
        stop = start + PORTION_CHARS
        if stop < len(text):
            stop = text.rfind("\n", start + 1, stop) + 1 or stop
        if text[start:stop].strip():
            portions.append(text[start:stop])
        start = stop
    return portions


def _read_jsonl(data: bytes, path: Path) -> list[Record]:
    records = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip():
            where = f"{path}: line {number}"
            records.append(_record(parse_json(line, where), where))
    return [record for record in records if record]


def _read_parquet(data: bytes, path: Path) -> list[Record]:
    try:
        import pyarrow  # noqa: PLC0415 - heavy, and rarely wanted
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError:
        raise MissingDependency(
            f"{path}: reading Parquet needs pyarrow", hint="pip install pyarrow, or convert the file to .jsonl"
        ) from None
    try:
        names = pyarrow.parquet.read_schema(pyarrow.BufferReader(data)).names
        columns = [name for name in ("text", "messages") if name in names]
        rows = pyarrow.parquet.read_table(pyarrow.BufferReader(data), columns=columns).to_pylist() if columns else [{}]
    except (pyarrow.ArrowException, OSError) as error:
        raise MalformedFile(f"{path}: not a readable Parquet file: {str(error).splitlines()[0]}") from None
    records = [_record(row, f"{path}: row {number}") for number, row in enumerate(rows, start=1)]
    return [record for record in records if record]


def _record(row: Mapping[str, Any], where: str) -> Record:
    """The text or the conversation of one record."""
    text, messages = row.get("text"), row.get("messages")
    if isinstance(text, str):
        return text
    if isinstance(messages, list) and all(map(_is_message, messages)):
        return [{"role": message["role"], "content": message["content"]} for message in messages]
    raise MalformedFile(
        f"{where}: neither a string 'text' nor a list 'messages' of objects with strings 'role' and 'content'"
    )


def _is_message(value: object) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str)


_READERS: Mapping[str, Callable[[bytes, Path], list[Record]]] = {
    ".txt": _read_text,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
