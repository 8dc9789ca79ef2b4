"""The chat templates of a model folder, wherever they stand.

transformers takes chat_template.jinja and additional_chat_templates/*.jinja before the config's `chat_template`, a
string or a list of named ones (`PreTrainedTokenizerBase._from_pretrained`); chat_template.json is what processors of
its versions 4 wrote, and is used where nothing else is. A template that is not used is told.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from quantkit.errors import MalformedFile
from quantkit.text.tokenizer_files import CONFIG_FILE, Files, read_object

TEMPLATE_FILE = "chat_template.jinja"
OLD_TEMPLATE_FILE = "chat_template.json"
TEMPLATE_FOLDER = "additional_chat_templates/"
TEMPLATE_SUFFIX = ".jinja"
DEFAULT = "default"
MAX_TEMPLATE_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class Templates:
    """Jinja sources. default: what a chat uses. named: all others, by name. notes: what is left aside, in lines."""

    default: str | None
    named: Mapping[str, str]
    notes: tuple[str, ...]


def read_templates(files: Files) -> Templates:
    """Every template of a folder.

    Raises:
        MalformedFile: not UTF-8, not a string, too long, or two templates of one name.
    """
    config = _named(read_object(files, CONFIG_FILE).get("chat_template"), CONFIG_FILE)
    old = _named(read_object(files, OLD_TEMPLATE_FILE).get("chat_template"), OLD_TEMPLATE_FILE)
    own = {DEFAULT: _text(files, TEMPLATE_FILE)} if TEMPLATE_FILE in files else {}
    further = {
        name.removeprefix(TEMPLATE_FOLDER).removesuffix(TEMPLATE_SUFFIX): _text(files, name)
        for name in files
        if name.startswith(TEMPLATE_FOLDER)
    }
    if DEFAULT in further and own:
        raise MalformedFile(f"{TEMPLATE_FOLDER}{DEFAULT}{TEMPLATE_SUFFIX} and {TEMPLATE_FILE} have one name")
    sources = [(TEMPLATE_FILE, own | further), (CONFIG_FILE, config), (OLD_TEMPLATE_FILE, old)]
    if further and not own:  # transformers then has no default any more; the config's does no harm
        sources[0] = (TEMPLATE_FOLDER, {**{name: text for name, text in config.items() if name == DEFAULT}, **further})
    used_file, used = next(((file, found) for file, found in sources if found), ("", {}))
    named = {name: text for name, text in used.items() if name != DEFAULT}
    return Templates(used.get(DEFAULT), named, tuple(_notes(used_file, used, sources)))


def _notes(used_file: str, used: Mapping[str, str], sources: list[tuple[str, dict[str, str]]]) -> Iterator[str]:
    for file, found in sources:
        unused = [name for name, text in found.items() if used.get(name) != text]
        if unused:
            yield f"{file}: chat template {', '.join(map(repr, unused))} is left aside for that of {used_file}"
    if used and DEFAULT not in used:
        yield (
            f"{used_file} names its chat templates {', '.join(map(repr, used))}, none {DEFAULT!r}: "
            "a chat needs to be told which"
        )


def with_flat_templates(files: Files) -> dict[str, Callable[[], bytes]]:
    """`files` with the templates of the sub folder in tokenizer_config.json, since artifacts have no sub folders.

    chat_template.jinja moves there as well, or transformers would not look into the config.
    """
    if not any(name.startswith(TEMPLATE_FOLDER) for name in files):
        return dict(files)
    found = read_templates(files)
    config = read_object(files, CONFIG_FILE)
    every = found.named if found.default is None else {DEFAULT: found.default, **found.named}
    config["chat_template"] = [{"name": name, "template": text} for name, text in every.items()]
    data = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
    kept = {
        name: read for name, read in files.items() if name != TEMPLATE_FILE and not name.startswith(TEMPLATE_FOLDER)
    }
    return {**kept, CONFIG_FILE: lambda: data}


def _text(files: Files, name: str) -> str:
    try:
        return _checked(files[name]().decode("utf-8"))
    except UnicodeDecodeError:
        raise MalformedFile(f"{name} is not UTF-8") from None


def _named(value: Any, file: str) -> dict[str, str]:  # noqa: ANN401 - JSON
    if value is None:
        return {}
    if not isinstance(value, list):
        return {DEFAULT: _checked(value)}
    found: dict[str, str] = {}
    for entry in value:
        name = entry.get("name") if isinstance(entry, Mapping) else None
        if not isinstance(name, str) or name in found:
            raise MalformedFile(
                f"{file}: chat_template must be a string, or a list of templates with names of their own"
            )
        found[name] = _checked(entry.get("template"))
    return found


def _checked(template: object) -> str:
    if not isinstance(template, str) or len(template.encode("utf-8")) > MAX_TEMPLATE_BYTES:
        raise MalformedFile(f"the chat template must be a string of at most {MAX_TEMPLATE_BYTES:,} bytes")
    return template
