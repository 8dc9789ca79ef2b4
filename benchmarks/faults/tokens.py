"""Faults of the tokens that begin and end a text, and of the chat template."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks.faults.fault import SPEC_TRIALS, Fault, Level, NotApplicable
from benchmarks.faults.scalars import with_config
from quantkit.models.checkpoint import Checkpoint

TOKENIZER_CONFIG, GENERATION_CONFIG = "tokenizer_config.json", "generation_config.json"
TEMPLATE_FILE = "chat_template.jinja"
ANOTHER = "<|tool_call|>"


def with_file(model: Checkpoint, name: str, data: bytes | None) -> Checkpoint:
    """`model` with a small file replaced, or left out."""
    files = {known: read for known, read in model.files.items() if known != name}
    return replace(model, files=files if data is None else {**files, name: lambda: data})


def with_json(model: Checkpoint, name: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Checkpoint:
    """`model` with a JSON file changed; as it is where it has no such file."""
    if name not in model.files:
        return model
    changed = change(json.loads(model.files[name]()))
    return with_file(model, name, json.dumps(changed, ensure_ascii=False, indent=2).encode())


def with_ids(model: Checkpoint, **ids: Any) -> Checkpoint:
    """`model` with token ids set in config.json and generation_config.json alike."""
    changed = with_json(model, GENERATION_CONFIG, lambda config: {**config, **ids})
    return with_config(changed, ids)


def with_eos(model: Checkpoint, change: Callable[[list[int]], list[int]]) -> Checkpoint:
    """`model` with other end tokens."""
    return with_ids(model, eos_token_id=change(list(model.spec.eos_token_ids)))


def another_id(model: Checkpoint) -> int:
    """An added token that ends no text."""
    added = json.loads(model.files["added_tokens.json"]())
    return int(added[ANOTHER])


def drop_first_stop(model: Checkpoint) -> Checkpoint:
    """One stop id fewer: that of plain text, which the tokenizer's own eos_token does not name."""
    if len(model.spec.eos_token_ids) < 2:
        raise NotApplicable("one stop id only")
    return with_eos(model, lambda ids: ids[1:])


def another_eos_token(model: Checkpoint) -> Checkpoint:
    """Another eos_token in the tokenizer's own files: the token that engines stop at."""
    changed = with_json(model, TOKENIZER_CONFIG, lambda config: {**config, "eos_token": ANOTHER})
    return with_json(changed, "special_tokens_map.json", lambda names: {**names, "eos_token": ANOTHER})


def another_bos(model: Checkpoint) -> Checkpoint:
    """Every text begins with another token."""
    changed = with_json(model, TOKENIZER_CONFIG, lambda config: {**config, "bos_token": ANOTHER})
    changed = with_json(changed, "special_tokens_map.json", lambda names: {**names, "bos_token": ANOTHER})
    return with_ids(changed, bos_token_id=another_id(model))


def with_flag(model: Checkpoint, name: str, value: bool) -> Checkpoint:
    """A flag of tokenizer_config.json set."""
    return with_json(model, TOKENIZER_CONFIG, lambda config: {**config, name: value})


def with_template(model: Checkpoint, change: Callable[[str], str | None]) -> Checkpoint:
    """`model` with its chat template changed wherever it stands, or dropped."""
    if TEMPLATE_FILE in model.files:
        text = change(model.files[TEMPLATE_FILE]().decode())
        model = with_file(model, TEMPLATE_FILE, None if text is None else text.encode())

    def changed(config: dict[str, Any]) -> dict[str, Any]:
        text = change(config["chat_template"]) if "chat_template" in config else None
        return {
            **{k: v for k, v in config.items() if k != "chat_template"},
            **({"chat_template": text} if text else {}),
        }

    return with_json(model, TOKENIZER_CONFIG, changed)


CHANGES: Mapping[str, Callable[[Checkpoint], Checkpoint]] = {
    "another stop id more": lambda model: with_eos(model, lambda ids: [*ids, another_id(model)]),
    "another stop id instead": lambda model: with_eos(model, lambda ids: [another_id(model), *ids[1:]]),
    "one stop id of two dropped": drop_first_stop,
    "the tokenizer's eos another": another_eos_token,
    "another bos": another_bos,
    "bos in config.json alone": lambda model: with_config(model, {"bos_token_id": another_id(model)}),
    "a pad token where there was none": lambda model: with_ids(model, pad_token_id=another_id(model)),
    "add_bos_token flipped": partial(with_flag, name="add_bos_token", value=False),
    "add_eos_token flipped": partial(with_flag, name="add_eos_token", value=True),
}
TEMPLATES: Mapping[str, Callable[[Checkpoint], Checkpoint]] = {
    "chat template dropped": partial(with_template, change=lambda text: None),
    "chat template without end of turn": partial(with_template, change=lambda text: text.replace("<|im_end|>", "")),
    "chat template with another role": partial(
        with_template, change=lambda text: text.replace("<|im_start|>assistant", "<|im_start|>user")
    ),
    "chat template with a space more": partial(with_template, change=lambda text: text + " "),
}

FAULTS = tuple(
    Fault(name=name, kind=kind, level=Level.SOURCE, change=change, trials=SPEC_TRIALS)
    for kind, changes in (("tokens", CHANGES), ("template", TEMPLATES))
    for name, change in changes.items()
)
