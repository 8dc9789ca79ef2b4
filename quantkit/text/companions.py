"""What the small files beside the weights say about the model, taken into the checkpoint when a folder is opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from quantkit.errors import InconsistentCheckpoint
from quantkit.models.checkpoint import Checkpoint
from quantkit.text.added_tokens import AddedToken, read_added_tokens
from quantkit.text.end_tokens import with_end_tokens
from quantkit.text.templates import read_templates, with_flat_templates
from quantkit.text.tokenizer_config import config_notes
from quantkit.text.tokenizer_files import Files
from quantkit.text.tokenizers.notes import tokenizer_notes


def with_companions(checkpoint: Checkpoint) -> Checkpoint:
    """`checkpoint` with every end token, every chat template, and notes on what its tokenizer asks for in vain.

    Whether text can be encoded at all is found out when a tokenizer is wanted (`read_vocabulary`).

    Raises:
        MalformedFile: a file that breaks the rules of its format.
    """
    notes = [*checkpoint.notes]
    added: dict[int, AddedToken] = {}
    try:
        added = read_added_tokens(checkpoint.files, checkpoint.spec.vocab_size)
    except InconsistentCheckpoint as error:  # weights alone do not need a tokenizer; `read_vocabulary` refuses it
        notes.append(f"no text can be encoded: {error}" + (f" ({error.hint})" if error.hint else ""))
    notes += _notes(checkpoint.files, added)
    flat = replace(checkpoint, files=with_flat_templates(checkpoint.files), notes=tuple(notes))
    return with_end_tokens(flat, added)


def _notes(files: Files, added: Mapping[int, AddedToken]) -> Iterator[str]:
    yield from read_templates(files).notes
    yield from config_notes(files)
    yield from tokenizer_notes(files, added)
