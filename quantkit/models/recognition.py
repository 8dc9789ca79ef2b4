"""From a config.json to the model that it describes: which architecture knows it, and what that one reads in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantkit import discovery
from quantkit.errors import BadConfig, UnsupportedModel, one_line
from quantkit.models.config_reader import shown
from quantkit.models.family.recognition import naming_member
from quantkit.models.spec import ROOM, Architecture, ModelSpec, architecture


def recognized(config: Mapping[str, Any], *, where: str = "config.json") -> Architecture:
    """The architecture of a config.

    Raises:
        UnsupportedModel: no architecture knows it.
        BadConfig: `architectures` is no list of names, or names several that are known.
    """
    names = config.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadConfig(f"{where}: architectures must be a list of strings, is {shown(names)}")
    known = [architecture(name) for name in discovery.names(ROOM)]
    found = [candidate for candidate in known if candidate.recognizes(config)]
    if len(found) > 1:
        raise BadConfig(f"{where}: architectures {', '.join(names)[:80]} names models of {len(found)} families")
    if not found:
        unknown = names[0] if names else config.get("model_type")
        raise UnsupportedModel(
            f"{where}: model {shown(unknown)} is not supported",
            hint=f"supported: {'; '.join(candidate.summary for candidate in known)}",
        )
    return found[0]


def parse_config(config: Mapping[str, Any], *, where: str = "config.json") -> ModelSpec:
    """Read a Hugging Face config of one of the families.

    `where` begins every message.

    Raises:
        UnsupportedModel: another family, or something that is not understood, by name; a refused member by its own.
        BadConfig: a value of the wrong type or outside its range, or two that contradict each other.
    """
    with naming_member(config):
        return recognized(config, where=where).spec(config, where)


def config_notes(config: Mapping[str, Any], *, where: str = "config.json") -> tuple[str, ...]:
    """What a config that `parse_config` takes says and nobody here understands, or is ignored; one line each."""
    return tuple(map(one_line, recognized(config, where=where).notes(config, where)))
