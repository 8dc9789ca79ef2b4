"""What the small files beside the weights say about the model, taken into the checkpoint when a folder is opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from quantkit.errors import InconsistentCheckpoint
from quantkit.models.checkpoint import Checkpoint
from quantkit.text.added_tokens import AddedToken, read_added_tokens, rule_notes
from quantkit.text.end_tokens import with_end_tokens
from quantkit.text.templates import read_templates, with_flat_templates
from quantkit.text.tokenizer_config import config_notes, named_token
from quantkit.text.tokenizer_files import CONFIG_FILE, MODEL_FILE, TOKENIZER_FILE, Files, read_object
from quantkit.text.tokenizer_json import added_edges, read_tokenizer_json, text_notes


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
    yield from rule_notes(added)
    tokenizer = read_tokenizer_json(files)
    if tokenizer is None or MODEL_FILE not in files:
        return
    yield from text_notes(tokenizer)
    edges = added_edges(tokenizer)
    if edges is None:
        yield f"{TOKENIZER_FILE}: its post-processor is not understood; what it adds to a text is not added"
        return
    config = read_object(files, CONFIG_FILE)
    for name, token in zip(("bos", "eos"), edges, strict=True):
        wanted, named = config.get(f"add_{name}_token"), named_token(files, f"{name}_token")
        if wanted is not None and wanted is not (token is not None):
            says = "does not" if token is None else "does"
            yield f"{CONFIG_FILE}: add_{name}_token {wanted} is followed, though {TOKENIZER_FILE} {says} add one"
        if wanted is None and token is None and name == "bos":
            yield f"{TOKENIZER_FILE} adds no first token, {CONFIG_FILE} has no add_bos_token: texts begin without one"
        if token is not None and named is not None and token != named[0]:
            yield f"{named[1]}: {name}_token {named[0]!r} is followed, though {TOKENIZER_FILE} adds {token!r}"
