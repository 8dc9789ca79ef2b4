"""What the folder of an original says of itself: its name, its place on a hub, its licence, its languages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from quantkit.artifacts.manifest import read_manifest
from quantkit.errors import QuantkitError
from quantkit.files.member import CACHED_MODEL, SNAPSHOTS
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.family.members import MEMBERS
from quantkit.models.layouts.front_matter import Card, read_front_matter
from quantkit.models.layouts.small_files import CARD_NAME, is_legal
from quantkit.pipeline.card.about import ABOUT, About, awaited
from quantkit.protocols import Method

LICENSE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
LICENSE_NAME = re.compile(r"[\w .+-]{1,80}")
LICENSE_LINK = re.compile(r"(https://[\w./%#?=&+-]{1,200}|[\w.-]{1,80})")
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z]{2,8})?")
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
"""OWNER/NAME on a hub."""
OWNER, FAMILY = "openbmb", ("MiniCPM", "BitCPM", "AgentCPM")
"""Who publishes the members that are called so."""
TEXTS = {
    "apache-2.0": ("Apache License", "Version 2.0"),
    "mit": ("MIT License", "Permission is hereby granted, free of charge"),
}
"""Licences that are known by their text: what stands in its first part."""
FIRST_PART = 2000


def about(model: Checkpoint) -> About:
    """What is known of a model before anything is done to it; what an artifact of ours was told of its own source.

    Nothing here is needed to write a model, so a file that cannot be read leaves a fact unknown.
    """
    with suppress(QuantkitError):
        known = About.from_json((read_manifest(model.path) or {}).get(ABOUT))
        if known is not None:
            return known
    path = model.path.resolve()
    name, repository = _called(path)
    said = _card(model)
    license_id = _first(said, "license", LICENSE_ID) or _license_by_text(model)
    named = license_id == "other"
    return About(
        name=name,
        base_model=repository,
        license=license_id,
        license_name=_first(said, "license_name", LICENSE_NAME) if named else None,
        license_link=_first(said, "license_link", LICENSE_LINK) if named else None,
        language=_fitting(said, "language", LANGUAGE),
    )


def begun(source: Checkpoint, method: str, methods: Mapping[str, Method]) -> About:
    """What is known of `source` when it is to be quantized, by the method of every weight: figures are to come."""
    calibrated = any(one.needs_calibration for one in methods.values())
    return replace(about(source), method=method, calibrated=calibrated, errors=awaited(list(methods)))


def _called(path: Path) -> tuple[str, str | None]:
    """A model's name, and its place on a hub: as the hub's cache has it, or as a member of the family is published."""
    if path.parent.name == SNAPSHOTS and path.parent.parent.name.startswith(CACHED_MODEL):
        owner, _, name = path.parent.parent.name.removeprefix(CACHED_MODEL).partition("--")
        repository = f"{owner}/{name}" if name else owner
        return name or owner, repository if REPOSITORY.fullmatch(repository) else None
    name = path.name if path.is_dir() else path.stem
    published = {each for member in MEMBERS for each in (member.name, *member.also)}
    ours = name in published and name.startswith(FAMILY)
    return name, f"{OWNER}/{name}" if ours else None


def _card(model: Checkpoint) -> Card:
    with suppress(QuantkitError):
        return read_front_matter(model.files[CARD_NAME]()) if CARD_NAME in model.files else {}
    return {}


def _fitting(said: Card, key: str, shape: re.Pattern[str]) -> tuple[str, ...]:
    """What a card says under `key`, as far as it looks like what it should be; each once."""
    value = said.get(key, ())
    values = [value] if isinstance(value, str) else value
    return tuple(dict.fromkeys(one for one in values if shape.fullmatch(one)))


def _first(said: Card, key: str, shape: re.Pattern[str]) -> str | None:
    return next(iter(_fitting(said, key, shape)), None)


def _license_by_text(model: Checkpoint) -> str | None:
    for name, read in sorted(model.files.items()):
        if is_legal(name):
            with suppress(QuantkitError):
                first = read()[:FIRST_PART].decode("utf-8", "replace")
                for known, phrases in TEXTS.items():
                    if all(phrase in first for phrase in phrases):
                        return known
    return None
