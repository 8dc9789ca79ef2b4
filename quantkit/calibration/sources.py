"""Where calibration sequences come from: files, and the model itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from quantkit.calibration.folds import MOST
from quantkit.calibration.own_text.generation import own_text
from quantkit.calibration.samples import (
    OWN_TEXT,
    CalibrationFile,
    CalibrationOptions,
    Samples,
    Source,
    check_context,
    joined,
    merged,
)
from quantkit.calibration.text_file import file_sequences
from quantkit.errors import BadOption
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.loading import CPU
from quantkit.progress import Progress
from quantkit.text.tokenizer import Tokenizer, find_tokenizer

FILES_ALONE = (
    "calibrated on the given files alone: text of other kinds lost 1.1 to 1.3 times as much, where it was measured, as "
    "with the model's own text beside them"
)
"""`python -m benchmarks.int4_quality`: the rows of the default with a file, and of the file alone."""
FEW = 0.1
"""Of the tokens wanted from a file: where it has less, that is said."""
Part = tuple[Source, Sequence[np.ndarray]]


def calibration_samples(
    checkpoint: Checkpoint,
    options: CalibrationOptions,
    *,
    threads: int = 1,
    device: torch.device = CPU,
    bfloat16: bool = False,
    progress: Progress | None = None,
) -> Samples:
    """Sequences from the files of `options`, joined by what the model writes itself.

    Raises:
        What `file_samples` and `own_samples` raise.
    """
    made = [file_samples(checkpoint, options, progress=progress)] if options.files else []
    if options.own_text:  # files go first: a bad one is found before anything is generated
        made.append(
            own_samples(checkpoint, options, threads=threads, device=device, bfloat16=bfloat16, progress=progress)
        )
    return merged(made)


def file_samples(checkpoint: Checkpoint, options: CalibrationOptions, *, progress: Progress | None = None) -> Samples:
    """Sequences from the files of `options`, at least one; of files with the same bytes the first alone.

    Raises:
        BadOption: sequences longer than the model's context, or a model whose tokenizer cannot be read.
        Everything that `find_tokenizer` and `file_sequences` raise.
    """
    check_context(options, checkpoint.spec)
    tokenizer = find_tokenizer(checkpoint)
    if isinstance(tokenizer, str):
        raise BadOption(
            f"{options.files[0].path}: {tokenizer}, so no text can be read",
            hint="leave out --calibration: the model then writes token ids of its own",
        )
    if progress is not None:
        progress("reading calibration text", 0, 1)
    parts, notes, warnings = _of_files(tokenizer, options, options.shares())
    return joined(parts, notes=notes if options.own_text else [*notes, FILES_ALONE], warnings=warnings)


def own_samples(
    checkpoint: Checkpoint,
    options: CalibrationOptions,
    *,
    threads: int = 1,
    device: torch.device = CPU,
    bfloat16: bool = False,
    progress: Progress | None = None,
) -> Samples:
    """Own text's share of the sequences, generated on `device`; `progress` is told of tokens that are generated.

    Each kind of text is a source; together they count 1.

    Raises:
        BadOption: sequences longer than the model's context.
        Everything that `find_tokenizer` and `own_text` raise.
    """
    check_context(options, checkpoint.spec)
    made = own_text(
        checkpoint,
        find_tokenizer(checkpoint),
        options,
        sequences=options.shares()[-1],
        threads=threads,
        device=device,
        bfloat16=bfloat16,
        progress=progress,
    )
    by_kind: dict[str, list[np.ndarray]] = {}
    for kind, sequence in zip(made.kinds, made.sequences, strict=True):
        by_kind.setdefault(kind, []).append(sequence)
    parts = [
        (
            Source(name=f"{OWN_TEXT}: {kind}", kind=kind, digest=made.digest, weight=1 / len(by_kind), own=True),
            sequences,
        )
        for kind, sequences in by_kind.items()
    ]
    notes = [made.note] if made.note is not None else []
    return joined(parts, seed=options.seed, own_text=made.in_words(), notes=notes)


def _of_files(
    tokenizer: Tokenizer, options: CalibrationOptions, shares: Sequence[int]
) -> tuple[list[Part], list[str], list[str]]:
    """What every file gives, notes, warnings; of files with the same bytes the first alone, with the weight of all."""
    found: dict[str, tuple[CalibrationFile, int, Part]] = {}
    notes, warnings = [], []
    for file, share in zip(options.files, shares, strict=False):
        part = file_sequences(tokenizer, file, sequences=share, length=options.length)
        digest = part[0].digest
        if digest not in found:
            found[digest] = file, share, part
            continue
        first, before, _ = found[digest]
        notes.append(f"{first.path} and {file.path} are the same text: it is taken once, with the weight of both")
        both, shared = replace(first, weight=first.weight + file.weight), before + share
        part = file_sequences(tokenizer, both, sequences=shared, length=options.length)
        found[digest] = both, shared, part
    for file, share, (_, sequences) in found.values():
        tokens, wanted = sum(map(len, sequences)), share * options.length
        if tokens < FEW * wanted:
            warnings.append(
                f"{file.path}: only {tokens:,} of {wanted:,} tokens that were wanted; each counts at most "
                f"{MOST:g} times as much as the mean"
            )
    return _named_apart([part for _, _, part in found.values()]), notes, warnings


def _named_apart(parts: Sequence[Part]) -> list[Part]:
    """Files of the same name in several folders are numbered."""
    seen: Counter[str] = Counter()
    named = []
    for source, sequences in parts:
        seen[source.name] += 1
        number = seen[source.name]
        named.append((replace(source, name=f"{source.name} ({number})") if number > 1 else source, sequences))
    return named
