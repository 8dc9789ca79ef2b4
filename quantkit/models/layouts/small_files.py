"""The files around the weights: which travel with the model, which are code, and what is said of the others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

from quantkit.errors import BadOption, IncompleteCheckpoint, ReadFailed
from quantkit.files.foreign_file import read_head, refuse_other_content
from quantkit.files.member import location_of, open_member
from quantkit.files.shard_index import INDEX_NAME
from quantkit.models.remote_config import AUTO_MAP, CONFIG_CLASS_FILE

CONFIG_NAME = "config.json"
CARD_NAME = "README.md"
"""The model card."""
MAX_CONFIG_BYTES = 1 << 20
MAX_SMALL_FILE_BYTES = 64 << 20

_SMALL_FILES = ("added_tokens.json", "chat_template.json", "generation_config.json", "special_tokens_map.json")
_TEMPLATE_FOLDER = "additional_chat_templates"
_OWN_FILES = ("quantkit.json", CONFIG_NAME, "quantize_config.json")
"""Read by whoever knows the container, and written anew."""
_LEGAL = ("license", "licence", "notice", "copying")
_LEGAL_SUFFIXES = (".txt", ".md", ".rst")
_MOST_NAMED = 440
"""Characters of names in the note of what is left behind, so that it is shown whole (`MAX_MESSAGE`)."""
_TOKENIZER_SUFFIXES = (".json", ".model", ".txt")
_SMALL_SUFFIXES = (".json", ".jinja", ".model", ".txt")
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_CODE_KEYS = ("auto_map", "trust_remote_code", "_attn_implementation_internal")


def file_names(path: Path) -> list[str]:
    """Names of everything in the folder `path`, sorted; raises `BadOption` (no folder) or `ReadFailed`."""
    try:
        return sorted(entry.name for entry in path.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        raise BadOption(f"{path} is not a folder") from None
    except OSError as error:
        raise ReadFailed(f"{path} cannot be read: {error.strerror}") from error


def pickles(names: Collection[str]) -> list[str]:
    """Those of `names` that hold pickles, by their endings."""
    return [name for name in names if name.endswith(_PICKLE_SUFFIXES)]


def travelling_files(path: Path, names: Collection[str]) -> dict[str, Callable[[], bytes]]:
    """Tokenizer, templates, generation defaults, licences, card of the folder `path`: name to a thunk that reads it.

    The name of a further template begins with its sub folder. The first bytes of each are read, and refused where
    they are those of something else.

    Raises:
        What `open_member` and `refuse_other_content` raise.
    """
    travelling = [name for name in names if _travels(name) and not (_is_prose(name) and (path / name).is_dir())]
    travelling += [name for name in template_folder(path, names) if name.endswith(".jinja")]
    return {name: _reader(path, name) for name in travelling}


def check_links(path: Path, names: Collection[str]) -> None:
    """Raise `UnsafePath` for a small file that leads out of the folder `path`, whoever would read it."""
    for name in names:
        if name.endswith(_SMALL_SUFFIXES):
            with suppress(IncompleteCheckpoint):  # a link to nothing is no file
                location_of(path, name)


def config_notes(config: Mapping[str, Any]) -> list[str]:
    """A line for each key of config.json that asks for code."""
    ours = config.get("auto_map") == AUTO_MAP
    return [
        f"{CONFIG_NAME}: {key} asks for code, which is neither run nor copied"
        for key in _CODE_KEYS
        if config.get(key) and not (ours and key == "auto_map")
    ]


def file_notes(config: Mapping[str, Any], names: Sequence[str], shards: Collection[str]) -> list[str]:
    """What is not read of the files `names`, one line for each kind; `shards` are the weights that are."""
    ours = config.get("auto_map") == AUTO_MAP
    notes = [
        f"{name} is not part of the model (not in the index) and is not read"
        for name in names
        if name.endswith(".safetensors") and name not in shards
    ]
    code = [name for name in names if name.endswith(".py") and not (ours and name == CONFIG_CLASS_FILE)]
    unread = sorted([*code, *pickles(names)])
    left = [name for name in names if not (_is_known(name) or name in shards or name in unread)]
    left += [f"{name} ({'code' if name in code else 'a pickle'}, never read)" for name in unread]
    if left:
        shown = [
            name
            for name, end in zip(left, accumulate(len(name) + 2 for name in left), strict=True)
            if end <= _MOST_NAMED
        ]
        more = f" and {len(left) - len(shown)} more" if len(shown) < len(left) else ""
        notes.append(f"left behind: {', '.join(shown)}{more}")
    return notes


def is_legal(name: str) -> bool:
    """Whether a file is a licence or a notice: LICENSE, NOTICE.txt, COPYING.md, License-MiniCPM ..."""
    lower = name.casefold()
    return lower.startswith(_LEGAL) and (lower.endswith(_LEGAL_SUFFIXES) or "." not in lower)


def _is_prose(name: str) -> bool:
    """Whether a file is for people to read: it may begin with anything."""
    return is_legal(name) or name == CARD_NAME


def _travels(name: str) -> bool:
    """Whether a small file goes with the model: tokenizer, templates, generation defaults, licences, card; no code."""
    tokenizer = name.startswith("tokenizer") and name.endswith(_TOKENIZER_SUFFIXES)
    return tokenizer or name.endswith(".jinja") or name in _SMALL_FILES or _is_prose(name)


def _is_known(name: str) -> bool:
    """Whether a file travels, is read or told elsewhere, or belongs to the folder rather than to the model."""
    known = name in _OWN_FILES or name in (INDEX_NAME, CONFIG_CLASS_FILE, _TEMPLATE_FOLDER)
    return known or _travels(name) or name.endswith(".safetensors") or name.startswith(".")


def template_folder(path: Path, names: Collection[str]) -> list[str]:
    """What lies with the templates beside chat_template.jinja, each with its sub folder's name before its own."""
    if _TEMPLATE_FOLDER not in names:
        return []
    folder = location_of(path, _TEMPLATE_FOLDER)
    if not folder.is_dir():
        return []
    return [f"{_TEMPLATE_FOLDER}/{name}" for name in file_names(folder)]


def _reader(path: Path, name: str) -> Callable[[], bytes]:
    file = open_member(path, name)
    if not _is_prose(name) and (file.size or not name.endswith(".jinja")):  # a template may be empty
        refuse_other_content(file, read_head(file))
    return lambda: file.read_all(MAX_SMALL_FILE_BYTES)
