"""The tokens that end a text: what config.json, generation_config.json and the tokenizer name, together.

Each of the three is the only one to name the end of a turn in some published model. Whoever reads one alone gets a
model that never stops, so the union is taken once, here, and written to every place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from quantkit.errors import MalformedFile, UnsupportedModel
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.config import token_ids_value
from quantkit.text.added_tokens import AddedToken
from quantkit.text.sentencepiece_model import parse_model
from quantkit.text.templates import read_templates
from quantkit.text.tokenizer_files import CONFIG_FILE, MODEL_FILE, SPECIALS_FILE, Files, read_object, token_text
from quantkit.text.tokenizer_json import read_tokenizer_json

GENERATION_FILE = "generation_config.json"
END_KEYS = ("eos_token", "eot_token", "eom_token")
"""End of text, of turn and of message, as tokenizers name them."""
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>")
"""What chat templates end a turn with."""
_STEERING = ("bad_words_ids", "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens")
"""Keys of generation_config.json that choose tokens; nothing here follows them."""


@dataclass(frozen=True, slots=True)
class EndTokens:
    """ids: those of config.json, then those that only generation_config.json, then that only the tokenizer names."""

    ids: tuple[int, ...]
    notes: tuple[str, ...]


def with_end_tokens(checkpoint: Checkpoint, added: Mapping[int, AddedToken]) -> Checkpoint:
    """`checkpoint` with all its end tokens in spec, config and generation_config.json; itself where nothing is missing.

    Raises:
        MalformedFile: generation_config.json or the tokenizer's files break the rules of their format.
    """
    found = end_tokens(checkpoint, added)
    ids = list(found.ids)
    config, files, spec = checkpoint.config, checkpoint.files, replace(checkpoint.spec, eos_token_ids=found.ids)
    if ids != (_as_list(config["eos_token_id"]) if "eos_token_id" in config else list(checkpoint.spec.eos_token_ids)):
        config = {**config, "eos_token_id": token_ids_value(ids)}
    generation = read_object(files, GENERATION_FILE)
    if GENERATION_FILE in files and set(_as_list(generation.get("eos_token_id"))) != set(ids):
        text = json.dumps({**generation, "eos_token_id": token_ids_value(ids)}, indent=2, sort_keys=True)
        data = (text + "\n").encode()
        files = {**files, GENERATION_FILE: lambda: data}
    return replace(checkpoint, config=config, spec=spec, files=files, notes=(*checkpoint.notes, *found.notes))


def end_tokens(checkpoint: Checkpoint, added: Mapping[int, AddedToken]) -> EndTokens:
    """The union, and a line for each file that knows more than config.json or names what is not there."""
    size = checkpoint.spec.vocab_size
    files = checkpoint.files
    ids, notes = list(checkpoint.spec.eos_token_ids), list[str]()
    for file, token_ids in (
        (GENERATION_FILE, _generation_ids(files, added, notes)),
        ("the tokenizer", list(_tokenizer_ids(files, added, notes))),
    ):
        new = [index for index in dict.fromkeys(token_ids) if index not in ids and index < size]
        beyond = [index for index in token_ids if index >= size]
        if new:
            notes.append(f"end tokens {', '.join(map(str, new))} are named by {file}, not by config.json; all are kept")
        if beyond:
            notes.append(f"{file} names the end token {beyond[0]}, which is not below vocab_size {size}; left out")
        ids += new
    template = read_templates(files).default or ""
    for index, token in added.items():
        if token.text in TURN_ENDS and token.text in template and index not in ids:
            notes.append(
                f"the chat template ends turns with {token.text!r} ({index}), which no file calls an end token"
            )
    return EndTokens(tuple(ids), tuple(notes))


def _generation_ids(files: Files, added: Mapping[int, AddedToken], notes: list[str]) -> list[int]:
    generation = read_object(files, GENERATION_FILE)
    steering = [key for key in _STEERING if generation.get(key)]
    if steering:
        notes.append(f"{GENERATION_FILE}: {', '.join(steering)} are not followed")
    ids = _as_list(generation.get("eos_token_id"))
    for index in ids:
        if type(index) is not int or index < -1:
            raise MalformedFile(
                f"{GENERATION_FILE}: eos_token_id must be a token id or a list of them, is {ids!r}"[:200]
            )
    for text in _as_list(generation.get("stop_strings")):
        index = _id_of(text, files, added) if isinstance(text, str) else None
        if index is None:
            notes.append(f"{GENERATION_FILE}: the stop string {str(text)[:40]!r} is no token; no text ends with it")
        else:
            ids = [*ids, index]
    return [index for index in ids if index != -1]  # -1: none


def _as_list(value: Any) -> list[Any]:  # noqa: ANN401 - JSON
    return value if isinstance(value, list) else [] if value is None else [value]


def _tokenizer_ids(files: Files, added: Mapping[int, AddedToken], notes: list[str]) -> Iterator[int]:
    for file in (CONFIG_FILE, SPECIALS_FILE):
        content = read_object(files, file)
        for key in END_KEYS:
            text = token_text(content.get(key), f"{file}: {key}")
            index = None if text is None else _id_of(text, files, added)
            if index is not None:
                yield index
            elif text is not None:
                notes.append(f"{file}: {key} {text[:40]!r} is not in the vocabulary; no text ends with it")


def _id_of(text: str, files: Files, added: Mapping[int, AddedToken]) -> int | None:
    """The id of the token `text`: an added one, else a piece of tokenizer.json, else of `tokenizer.model`."""
    for index, token in added.items():
        if token.text == text:
            return index
    tokenizer = read_tokenizer_json(files)
    if tokenizer is not None and text in tokenizer.ids:
        return tokenizer.ids[text]
    if MODEL_FILE not in files:
        return None
    try:
        pieces = parse_model(files[MODEL_FILE](), MODEL_FILE).pieces
    except UnsupportedModel:  # told when the tokenizer is wanted; weights alone do not need it
        return None
    return pieces.index(text) if text in pieces else None
