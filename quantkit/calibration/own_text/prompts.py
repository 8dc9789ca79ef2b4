"""What the model's own calibration text begins with: bundled openings of several kinds of text, as token ids.

`prompts.txt` holds them below lines `=== KIND`. Parts of one are parted by lines `---`: the turns of a dialogue, the
user's first and last; of a call of a tool, its JSON description and the question. A chat template writes both kinds
where there is one, and tools where it takes them; else they are plain text.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from quantkit.errors import MalformedFile
from quantkit.text.chat_template import ChatOptions
from quantkit.text.tokenizer import Tokenizer

PROMPTS_FILE = "prompts.txt"
DIALOGUE, TOOLS = "dialogue", "tools"
_HEADER = re.compile(r"^=== (\w+)\n", re.MULTILINE)
_PARTING = "\n---\n"
_SPEAKERS = ("User", "Assistant")


@dataclass(frozen=True, slots=True)
class Opening:
    """How a text of some kind begins: one part, or the turns of a dialogue, or a tool and a question."""

    kind: str
    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Prompts:
    """Token ids of openings by kind, in the file's order.

    note: which are no chats though there is a template, and why; None = none.
    """

    of_kind: Mapping[str, tuple[list[int], ...]]
    note: str | None


def bundled_text() -> str:
    """The file of openings."""
    return resources.files("quantkit.calibration.own_text").joinpath(PROMPTS_FILE).read_text(encoding="utf-8")


def prompts_digest() -> str:
    """SHA-256 of the file of openings."""
    return hashlib.sha256(bundled_text().encode()).hexdigest()


def bundled_openings() -> tuple[Opening, ...]:
    """All openings in the file's order."""
    _, *pieces = _HEADER.split(bundled_text())
    bodies = (body.removesuffix("\n") for body in pieces[1::2])
    return tuple(Opening(kind, tuple(body.split(_PARTING))) for kind, body in zip(pieces[::2], bodies, strict=True))


def read_prompts(tokenizer: Tokenizer) -> Prompts:
    """The bundled openings as this model reads them, each with what its texts begin with.

    Raises:
        MissingDependency: there is a chat template, and jinja2 is not installed.
    """
    openings = bundled_openings()
    notes: list[str] = []
    rendered: dict[Opening, str] = {}
    for kind, render in _RENDERERS.items() if tokenizer.has_chat_template else ():
        try:
            rendered |= render(tokenizer, [opening for opening in openings if opening.kind == kind])
        except MalformedFile as failure:
            notes.append(f"{failure}; calibration text of the kind {kind} begins with plain text")
    encoded: dict[str, list[list[int]]] = {}
    for opening in openings:
        ids = tokenizer.encode(rendered.get(opening) or plain_text(opening))
        encoded.setdefault(opening.kind, []).append(ids)
    return Prompts({kind: tuple(each) for kind, each in encoded.items()}, "; ".join(notes) or None)


def plain_text(opening: Opening) -> str:
    """An opening for a model without chats."""
    if opening.kind == DIALOGUE:
        turns = [f"{_SPEAKERS[i % 2]}: {turn}\n" for i, turn in enumerate(opening.parts)]
        return "".join(turns) + f"{_SPEAKERS[1]}:"
    if opening.kind == TOOLS:
        tool, question = opening.parts
        return f'Tools: [{tool}]\nUser: {question}\nCall: {{"name": "'
    return opening.parts[0]


def _dialogues(tokenizer: Tokenizer, openings: Sequence[Opening]) -> dict[Opening, str]:
    turns = [
        [{"role": _SPEAKERS[i % 2].lower(), "content": part} for i, part in enumerate(opening.parts)]
        for opening in openings
    ]
    return dict(zip(openings, tokenizer.chats(turns, add_generation_prompt=True), strict=True))


def _tool_calls(tokenizer: Tokenizer, openings: Sequence[Opening]) -> dict[Opening, str]:
    """Chats about tools; none where the template leaves tools out."""
    tools = [json.loads(opening.parts[0]) for opening in openings]
    texts = tokenizer.chats(
        [[{"role": "user", "content": opening.parts[1]}] for opening in openings],
        add_generation_prompt=True,
        options=[ChatOptions(tools=[{"type": "function", "function": tool}]) for tool in tools],
    )
    triples = zip(openings, tools, texts, strict=True)
    return {opening: text for opening, tool, text in triples if tool["name"] in text}


_RENDERERS: Mapping[str, Callable[[Tokenizer, Sequence[Opening]], dict[Opening, str]]] = {
    DIALOGUE: _dialogues,
    TOOLS: _tool_calls,
}
"""Kinds that a chat template writes."""
