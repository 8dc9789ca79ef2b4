"""What the folder of an original says of itself: its name, its place on a hub, its licence, its languages."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from quantkit.artifacts.manifest import CARD_NAME, read_manifest
from quantkit.errors import QuantkitError
from quantkit.files.member import CACHED_MODEL, SNAPSHOTS, open_member
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.family.members import MEMBERS
from quantkit.models.layouts.small_files import is_legal
from quantkit.pipeline.card.about import ABOUT, About, awaited
from quantkit.pipeline.card.front_matter import (
    LANGUAGE,
    LICENSE_ID,
    LICENSE_LINK,
    LICENSE_NAME,
    REPOSITORY,
    fitting,
    read_front_matter,
)
from quantkit.protocols import Method

MAX_CARD_BYTES = 4 << 20
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
    said = _card(model.path) if path.is_dir() else {}
    found = {key: fitting(said.get(key, ()), shape) for key, shape in (("license", LICENSE_ID), ("language", LANGUAGE))}
    license_id = next(iter(found["license"]), None) or _license_by_text(model)
    named = license_id == "other"
    return About(
        name=name,
        base_model=repository,
        license=license_id,
        license_name=next(iter(fitting(said.get("license_name", ()), LICENSE_NAME)), None) if named else None,
        license_link=next(iter(fitting(said.get("license_link", ()), LICENSE_LINK)), None) if named else None,
        language=found["language"],
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


def _card(folder: Path) -> dict[str, tuple[str, ...]]:
    with suppress(QuantkitError):
        return read_front_matter(open_member(folder, CARD_NAME).read_all(MAX_CARD_BYTES).decode("utf-8", "replace"))
    return {}


def _license_by_text(model: Checkpoint) -> str | None:
    for name, read in sorted(model.files.items()):
        if is_legal(name):
            with suppress(QuantkitError):
                first = read()[:FIRST_PART].decode("utf-8", "replace")
                for known, phrases in TEXTS.items():
                    if all(phrase in first for phrase in phrases):
                        return known
    return None
