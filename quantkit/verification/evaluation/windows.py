"""The text that models are evaluated on, as windows of token ids, and whether all of them read it alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quantkit.calibration.text_file import PORTION_CHARS, file_rows, read_text_file
from quantkit.errors import BadOption
from quantkit.models.checkpoint import Checkpoint
from quantkit.text.tokenizer import Tokenizer, find_tokenizer

MAX_WINDOWS, MAX_LENGTH = 1 << 20, 1 << 24
"""Of `EvaluationOptions`; a model's context is less."""
FEWEST_TOKENS = 2
"""Of a window: one that is read, and one that is predicted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowOptions:
    """Which part of a text is predicted.

    sequences, length: how many windows, evenly spread over the text, of at most how many tokens; BOS counts.
    skip_positions: the first so many predictions of every window are not counted. Each has less to go by than those
        that follow it: leaving out half of a window gives the figures of llama.cpp's tool.
    """

    sequences: int = 16
    length: int = 512
    skip_positions: int = 0

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("sequences", self.sequences, 1, MAX_WINDOWS),
            ("length", self.length, FEWEST_TOKENS, MAX_LENGTH),
            ("skip_positions", self.skip_positions, 0, MAX_LENGTH),
        ):
            if not low <= value <= high:
                raise BadOption(f"{name} must be from {low} to {high:,}, is {value:,}")
        if self.skip_positions > self.length - FEWEST_TOKENS:
            raise BadOption(
                f"windows of {self.length} tokens have {self.length - 1} predictions, and {self.skip_positions} are "
                "to be skipped",
                hint="skip fewer, or take longer windows: --length",
            )


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """Token ids of every window, as the source's tokenizer reads the text.

    name, kind, digest: of the file, the last SHA-256. probe: what it begins with, for other tokenizers to read.
    skip_positions: see `WindowOptions`.
    """

    name: str
    kind: str
    digest: str
    token_ids: tuple[tuple[int, ...], ...]
    probe: str
    tokenizer: Tokenizer
    skip_positions: int

    @property
    def tokens(self) -> int:
        """In all windows."""
        return sum(map(len, self.token_ids))

    @property
    def longest(self) -> int:
        """Tokens of the longest window."""
        return max(map(len, self.token_ids))

    def shortage(self, wanted: int) -> str | None:
        """One line where the text had fewer windows than were asked for."""
        found = len(self.token_ids)
        return f"{self.name} fills {found} of {wanted} windows that were asked for" if found < wanted else None

    def reading_problem(self, artifact: Checkpoint) -> str | None:
        """One line where the tokenizer of `artifact` cannot be asked; None where it reads the text as the source does.

        Raises:
            BadOption: it reads other tokens.
        """
        theirs = find_tokenizer(artifact)
        if isinstance(theirs, str):
            return f"{artifact.path}: {theirs}; it is given the source's token ids"
        ours, found = self.tokenizer.encode(self.probe), theirs.encode(self.probe)
        if ours != found:
            place = next((i for i, (a, b) in enumerate(zip(ours, found, strict=False)) if a != b), len(found))
            raise BadOption(
                f"{artifact.path} reads {self.name} as other tokens than the source does, from token {place} on",
                hint="evaluate an artifact against the model that it was made from: --against",
            )
        return None


def read_windows(source: Checkpoint, text: Path, options: WindowOptions) -> Windows:
    """Windows of `text` as the tokenizer of `source` reads it; each begins with what every text begins with (BOS).

    Of JSON lines and Parquet every record is cut by itself, and a short one is a short window.

    Raises:
        BadOption: a source without a readable tokenizer, or a text shorter than one window.
        What `find_tokenizer` and `read_text_file` raise.
    """
    file = read_text_file(text)
    tokenizer = find_tokenizer(source)
    if isinstance(tokenizer, str):
        raise BadOption(f"{source.path}: {tokenizer}, so no text can be read", hint="add the tokenizer's files")
    rows = file_rows(file, tokenizer, sequences=options.sequences, length=options.length)
    whole = sum(map(len, rows))
    fewest = options.skip_positions + FEWEST_TOKENS
    ids = tuple(tuple(map(int, row)) for row in rows if len(row) >= fewest)
    if whole < options.length or not ids:
        raise BadOption(
            f"{text}: {whole} tokens of text do not fill one window of {options.length}",
            hint="give more text, or shorter windows: --length",
        )
    probe = file.texts(tokenizer, file.records[:1])[0][:PORTION_CHARS]
    return Windows(text.name, file.kind, file.digest, ids, probe, tokenizer, options.skip_positions)
