"""The file name is the registry: how plug-ins of every kind are found.

A room is a package such as `quantkit.exporters`. Each of its modules whose name does not begin with `_` is a plug-in:
`exporters/awq.py` is "awq". A plug-in that outgrew one file is a folder of that name, and its object stands in the
module that is called after the kind: `runtimes/llama_cpp/runtime.py` is "llama-cpp".

Listing a room imports nothing from it; a module is imported when its plug-in is asked for by name.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from pathlib import Path

from quantkit.errors import chosen


def folders(room: str) -> list[Path]:
    """Where the package `room` lies; empty where there is none. Nothing is imported from it."""
    spec = importlib.util.find_spec(room)
    return [Path(folder) for folder in spec.submodule_search_locations or ()] if spec is not None else []


def names(room: str) -> tuple[str, ...]:
    """Names of the plug-ins in the package `room`, sorted; `_` in a file name reads as `-`."""
    modules = pkgutil.iter_modules(map(str, folders(room)))
    return tuple(sorted(module.name.replace("_", "-") for module in modules if module.name[0] != "_"))


def load(room: str, name: str, kind: str, *, called: str | None = None) -> object:
    """The object of the plug-in `name` in the package `room`: the module's attribute `KIND` in capitals.

    Args:
        room: a package, such as "quantkit.exporters".
        name: one of `names(room)`, in any case.
        kind: what the plug-in is, such as "exporter"; in the plural where a file holds several.
        called: what users call it, where that is another word ("format").

    Raises:
        BadOption: there is no plug-in of that name.
    """
    name = chosen(name, names(room), problem=f"unknown {called or kind} {name[:80]!r}")
    module = importlib.import_module(f"{room}.{name.replace('-', '_')}")
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"{module.__name__}.{kind}")
    return getattr(module, kind.upper())
