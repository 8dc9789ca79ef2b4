"""The files around the weights: which travel with the model, which are code, and what is said of the others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from quantkit.errors import BadOption, IncompleteCheckpoint, ReadFailed
from quantkit.files.foreign_file import read_head, refuse_cut_object, refuse_foreign
from quantkit.files.member import location_of, open_member
from quantkit.files.shard_index import INDEX_NAME
from quantkit.models.remote_config import AUTO_MAP, CONFIG_CLASS_FILE

CONFIG_NAME = "config.json"
MAX_CONFIG_BYTES = 1 << 20
MAX_SMALL_FILE_BYTES = 64 << 20

_SMALL_FILES = ("added_tokens.json", "chat_template.json", "generation_config.json", "special_tokens_map.json")
_TEMPLATE_FOLDER = "additional_chat_templates"
_OWN_FILES = ("quantkit.json", CONFIG_NAME, "quantize_config.json")
"""Read by whoever knows the container, and written anew."""
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
    """Tokenizer, templates and generation defaults of the folder `path`: name to a thunk that reads the bytes.

    The name of a further template begins with its sub folder. The first bytes of each are read, and refused where
    they are those of something else.

    Raises:
        What `open_member` and `refuse_foreign` raise.
    """
    travelling = [name for name in names if _travels(name)] + _further_templates(path, names)
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
    if unread:
        notes.append(f"{len(unread)} files that hold code or pickles are not read: {', '.join(unread)[:80]}")
    left = [name for name in names if not (_is_known(name) or name in shards or name in unread)]
    if left:
        more = f" and {len(left) - 8} more" if len(left) > 8 else ""
        notes.append(f"left behind: {', '.join(left[:8])}{more}")
    return notes


def _travels(name: str) -> bool:
    """Whether a small file belongs to what is written: tokenizer, templates, generation defaults; never code."""
    tokenizer = name.startswith("tokenizer") and name.endswith(_TOKENIZER_SUFFIXES)
    return tokenizer or name.endswith(".jinja") or name in _SMALL_FILES


def _is_known(name: str) -> bool:
    """Whether a file travels, is read or told elsewhere, or belongs to the folder rather than to the model."""
    known = name in _OWN_FILES or name in (INDEX_NAME, CONFIG_CLASS_FILE, _TEMPLATE_FOLDER)
    return known or _travels(name) or name.endswith(".safetensors") or name.startswith(".")


def _further_templates(path: Path, names: Collection[str]) -> list[str]:
    """The templates beside chat_template.jinja, each with its sub folder's name before its own."""
    if _TEMPLATE_FOLDER not in names:
        return []
    folder = location_of(path, _TEMPLATE_FOLDER)
    if not folder.is_dir():
        return []
    return [f"{_TEMPLATE_FOLDER}/{name}" for name in file_names(folder) if name.endswith(".jinja")]


def _reader(path: Path, name: str) -> Callable[[], bytes]:
    file = open_member(path, name)
    if file.size or not name.endswith(".jinja"):  # a template may be empty
        head = read_head(file)
        refuse_foreign(file, head)
        if name.endswith(".json"):
            refuse_cut_object(file, head)
    return lambda: file.read_all(MAX_SMALL_FILE_BYTES)
