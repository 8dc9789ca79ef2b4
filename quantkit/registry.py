"""The file name is the registry: `exporters/gguf.py` is the format "gguf", `runtimes/llama_cpp.py` is "llama-cpp".

Modules are found by listing the folder and imported only when asked for by name, so listing costs nothing and no
engine is imported before it is needed.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from pathlib import Path
from typing import cast

from quantkit.checkpoint import Checkpoint
from quantkit.errors import BadOption, MalformedFile
from quantkit.protocols import Exporter, Method, Runtime


def names(room: str) -> tuple[str, ...]:
    """Names of the plug-ins in `quantkit.<room>`, sorted; `_` in a file name reads as `-`."""
    spec = importlib.util.find_spec(f"quantkit.{room}")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    return tuple(
        sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(folders) if module.name[0] != "_")
    )


def _load(room: str, name: str, attribute: str, kind: str) -> object:
    if name not in names(room):
        raise BadOption(f"unknown {kind} {name!r}", hint=f"choose one of: {', '.join(names(room))}")
    module = importlib.import_module(f"quantkit.{room}.{name.replace('-', '_')}")
    return getattr(module, attribute)


def method(name: str) -> Method:
    """The quantization method `name`; raises `BadOption` for an unknown one."""
    return cast(Method, _load("methods", name, "METHOD", "method"))


def exporter(name: str) -> Exporter:
    """The exporter `name`; raises `BadOption` for an unknown one."""
    return cast(Exporter, _load("exporters", name, "EXPORTER", "format"))


def runtime(name: str) -> Runtime:
    """The runtime `name`; raises `BadOption` for an unknown one."""
    return cast(Runtime, _load("runtimes", name, "RUNTIME", "engine"))


def recognize(path: Path) -> Exporter:
    """The exporter whose container `path` is; raises `MalformedFile` when none knows it."""
    if not path.exists():
        raise BadOption(f"{path} does not exist")
    for name in names("exporters"):
        candidate = exporter(name)
        if candidate.recognizes(path):
            return candidate
    raise MalformedFile(f"{path} is not a model that quantkit reads", hint=f"readable: {', '.join(names('exporters'))}")


def open_checkpoint(path: Path) -> Checkpoint:
    """Open any readable model: a Hugging Face folder, a quantized folder, or a single-file artifact."""
    return recognize(path).read(path)
