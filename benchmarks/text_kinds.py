"""Kinds of text for judging calibration: one that is calibrated on, and two that no calibration text is of.

The first is the prose of the golden models' corpus, or a file that another model was trained on. The others are made
of what a machine has: the sources of the running interpreter, and the C headers of the system. What is measured is
held out of training (`golden/corpus.py`); what is calibrated on is not.
"""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from golden.corpus import Document, read_text, split_corpus

PYTHON, C = "python", "C"
RECORD_CHARS = 1 << 13
"""Fewest characters of a record of the calibration file: shorter documents are put together."""
MOST_HEADERS, HEADER_CHARS = 256, 1 << 14
"""So many headers, so much of each: neither a large library nor a table of data shall be all of it."""
HEADER_FOLDERS = (Path("/usr/include"), Path(sysconfig.get_paths()["include"]))


@dataclass(frozen=True, slots=True)
class TextKinds:
    """home: name of the kind that is calibrated on. training: its documents. measured: held-out documents by kind."""

    home: str
    training: Sequence[Document]
    measured: Mapping[str, Sequence[Document]]


def text_kinds(corpus: Iterable[Document], file: Path | None = None) -> TextKinds:
    """The prose of the golden models' corpus, or the UTF-8 text of `file`; and the kinds that this machine has.

    A kind of which this machine has nothing is left out.
    """
    sides = split_corpus(corpus)
    if file is None:
        training, held_out = ([item for item in side if item.kind == "prose"] for side in sides)
        home = "prose"
    else:
        training, held_out = split_corpus(read_text(file))
        home = "text"
    sources = [item for item in sides[1] if item.kind == "source"]
    found = {home: held_out, PYTHON: sources, C: list(headers(HEADER_FOLDERS))}
    return TextKinds(home, training, {kind: documents for kind, documents in found.items() if documents})


def headers(folders: Iterable[Path]) -> Iterator[Document]:
    """The beginnings of at most MOST_HEADERS C headers, evenly taken from all in `folders`; none where there are none.

    Nothing here is trained on, so all of it is held out.
    """
    files = sorted(file for folder in folders for file in folder.rglob("*.h") if file.is_file())
    taken = min(len(files), MOST_HEADERS)
    for file in (files[i * len(files) // taken] for i in range(taken)):
        yield Document(str(file), "c", file.read_text(encoding="utf-8", errors="ignore")[:HEADER_CHARS], held_out=True)


def write_calibration_file(documents: Iterable[Document], file: Path) -> None:
    """Write documents as JSON lines, each of at least RECORD_CHARS characters but the last."""
    with file.open("w", encoding="utf-8") as out:
        for text in _put_together(documents):
            out.write(json.dumps({"text": text}) + "\n")


def _put_together(documents: Iterable[Document]) -> Iterator[str]:
    waiting: list[str] = []
    for item in documents:
        waiting.append(item.text)
        if sum(map(len, waiting)) >= RECORD_CHARS:
            yield "\n".join(waiting)
            waiting = []
    if waiting:
        yield "\n".join(waiting)
