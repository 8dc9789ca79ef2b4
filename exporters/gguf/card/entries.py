"""What a model card says, as llama.cpp's keys `general.*`, and README.md made of these keys.

    general.name, .author, .version, .organization, .description, .finetune, .basename    texts
    general.source.url, .doi, .uuid, .repo_url                                            texts
    general.license, general.license.name, .link                                          texts
    general.tags, general.languages                                                       lists of texts
    general.base_model.count, .0.name, .0.organization, .0.repo_url, ...; general.dataset.* alike

The keys and the names in the card that they are made of are those of gguf-py's `metadata.py`, without what that guesses
from the name of a folder. `general.size_label` is counted, not read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from quantkit.exporters.gguf.container.file import GGUFFile
from quantkit.exporters.gguf.container.header import entry, string_array
from quantkit.exporters.gguf.container.types import ValueType
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.layouts.front_matter import Card, front_matter_bytes, read_front_matter
from quantkit.models.layouts.small_files import CARD_NAME

NAME, SIZE_LABEL = "general.name", "general.size_label"
HUB = "https://huggingface.co/"

_TEXTS: Mapping[str, tuple[str, ...]] = {
    NAME: ("name", "model_name"),
    "general.author": ("author", "model_author", "model_creator"),
    "general.version": ("version", "model_version"),
    "general.organization": ("organization", "model_organization"),
    "general.description": ("description", "model_description"),
    "general.finetune": ("finetune", "model_finetune"),
    "general.basename": ("basename", "model_basename", "model_type"),
    "general.source.url": ("url", "model_url"),
    "general.source.doi": ("doi", "model_doi"),
    "general.source.uuid": ("uuid", "model_uuid"),
    "general.source.repo_url": ("repo_url", "model_repo_url"),
    "general.license": ("license",),
    "general.license.name": ("license_name",),
    "general.license.link": ("license_link",),
}
"""Keys of the file, and the names in a card of which the first one that is there counts."""
_LISTS: Mapping[str, tuple[str, ...]] = {
    "general.tags": ("tags", "pipeline_tag"),
    "general.languages": ("languages", "language"),
}
"""The same, where all count."""
_MODELS: Mapping[str, tuple[str, ...]] = {
    "general.base_model": ("base_model", "base_models", "base_model_sources"),
    "general.dataset": ("datasets", "dataset", "dataset_sources"),
}
"""The same, where each is told of in several keys."""


def card_entries(model: Checkpoint, fallback: str, weights: int) -> list[bytes]:
    """The keys of the card of `model`. fallback: its name where the card has none. weights: how many it has."""
    card = read_front_matter(model.files[CARD_NAME]() if CARD_NAME in model.files else b"")
    texts = {NAME: fallback, SIZE_LABEL: size_label(weights)}
    for key, names in _TEXTS.items():
        found = next((card[name] for name in names if name in card), None)
        if found:
            texts[key] = found if isinstance(found, str) else ",".join(found)
    entries = [entry(key, ValueType.STRING, text) for key, text in texts.items()]
    for key, names in _LISTS.items():
        items = [item for name in names for item in _listed(card.get(name, ()))]
        entries += [string_array(key, items)] if items else []
    for key, names in _MODELS.items():
        models = _listed(next((card[name] for name in names if name in card), ()))
        entries += _model_entries(key, models) if models else []
    return entries


def _listed(value: str | Sequence[str]) -> Sequence[str]:
    return [value] if isinstance(value, str) else value


def _model_entries(key: str, items: Sequence[str]) -> list[bytes]:
    entries = [entry(f"{key}.count", ValueType.UINT32, len(items))]
    for number, item in enumerate(items):
        told = _told(item)
        entries += [entry(f"{key}.{number}.{part}", ValueType.STRING, text) for part, text in told.items()]
    return entries


def _told(item: str) -> dict[str, str]:
    """What is told of a model or data set by its name on the Hub, or by its address."""
    if re.match(r"(https?|ssh)://", item):
        known = re.fullmatch(r"https?://huggingface.co/([^/]+/[^/]+)", item)
        return {**({} if known is None else _named(known[1])), "repo_url": item}
    named = _named(item)
    return {**named, "repo_url": HUB + item} if "organization" in named else named


def _named(name: str) -> dict[str, str]:
    organization, slash, rest = name.partition("/")
    if " " in name or not slash:
        return {"name": _title(name)}
    return {"name": _title(rest), **({} if organization.startswith(".") else {"organization": _title(organization)})}


def _title(name: str) -> str:
    """Words with a capital letter, versions and sizes as they are."""
    words = name.strip().replace("-", " ").split()
    return " ".join(w.title() if w.islower() and not re.match(r"(v\d+(?:\.\d+)*|\d.*)$", w) else w for w in words)


def size_label(weights: int) -> str:
    """Such as 0.5B, 4.3B or 433M: two digits at least."""
    factor, suffix = next((pair for pair in ((1e12, "T"), (1e9, "B"), (1e6, "M")) if weights > pair[0]), (1e3, "K"))
    scaled = weights * (1 / factor)
    return f"{scaled:.{max(2 - len(str(round(scaled)).lstrip('0')), 0)}f}{suffix}"


def card_file(gguf: GGUFFile) -> dict[str, Callable[[], bytes]]:
    """README.md with a head that says what the keys say; nothing where they say no more than a name."""
    texts, lists = _told_texts(gguf), _told_lists(gguf)
    if not texts.keys() - {"name", "basename", "finetune", "version"} and not lists:
        return {}
    data = front_matter_bytes({**texts, **lists})
    return {CARD_NAME: lambda: data}


def _told_texts(gguf: GGUFFile) -> dict[str, str]:
    values: dict[str, Any] = {names[0]: gguf.metadata.get(key) for key, names in _TEXTS.items()}
    return {name: value for name, value in values.items() if isinstance(value, str) and value}


def _told_lists(gguf: GGUFFile) -> Card:
    found: dict[str, Sequence[str]] = {}
    for key, name in (("general.tags", "tags"), ("general.languages", "language")):
        value = gguf.metadata.get(key)
        if isinstance(value, list) and value:
            found[name] = value
    for key, names in _MODELS.items():
        count = gguf.metadata.get(f"{key}.count")
        numbers = range(count) if isinstance(count, int) and 0 < count <= len(gguf.metadata) else ()
        models = [_model_name(gguf, f"{key}.{number}") for number in numbers]
        if any(models):
            found[names[0]] = [model for model in models if model]
    return found


def _model_name(gguf: GGUFFile, key: str) -> str | None:
    """As a card names it: by the Hub, else by its address or its name."""
    address, name = gguf.metadata.get(f"{key}.repo_url"), gguf.metadata.get(f"{key}.name")
    if isinstance(address, str) and address:
        return address.removeprefix(HUB)
    return name if isinstance(name, str) and name else None
