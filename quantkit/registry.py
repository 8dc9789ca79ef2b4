"""Plug-ins by name: methods, exporters, runtimes, kernels of engines (`quantkit.discovery` says how they are found)."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from quantkit import discovery
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.layouts.unreadable import unreadable
from quantkit.protocols import Exporter, Kernel, Method, Runtime
from quantkit.tensors.scheme import Scheme


def names(room: str) -> tuple[str, ...]:
    """Names of the plug-ins in the room "methods", "exporters" or "runtimes"."""
    return discovery.names(f"quantkit.{room}")


def method(name: str) -> Method:
    """The quantization method `name`; raises `BadOption` for an unknown one."""
    return cast(Method, discovery.load("quantkit.methods", name, "method"))


def default_scheme(method_name: str) -> Scheme:
    """What a method quantizes to where the user does not say; raises `BadOption` for an unknown one."""
    return method(method_name).default_scheme


def exporter(name: str) -> Exporter:
    """The exporter `name`; raises `BadOption` for an unknown one."""
    return cast(Exporter, discovery.load("quantkit.exporters", name, "exporter", called="format"))


def runtime(name: str) -> Runtime:
    """The runtime `name`; raises `BadOption` for an unknown one."""
    return cast(Runtime, discovery.load("quantkit.runtimes", name, "runtime", called="engine"))


def kernels(container: str, target: str | None = None) -> tuple[Kernel, ...]:
    """The kernels of all engines that read `container`, engines in the order of their names.

    target: the engine whose layout is meant, where the container has several; None = any.
    """
    room = "quantkit.runtimes._kernels"
    tables = (cast("tuple[Kernel, ...]", discovery.load(room, name, "kernels")) for name in discovery.names(room))
    return tuple(
        kernel
        for table in tables
        for kernel in table
        if container in kernel.containers and (target is None or not kernel.targets or target in kernel.targets)
    )


def containers() -> tuple[Exporter, ...]:
    """Every exporter, by name."""
    return tuple(exporter(name) for name in names("exporters"))


def engines() -> tuple[Runtime, ...]:
    """Every runtime, by name; `Runtime.missing` says what one needs that is not installed."""
    return tuple(runtime(name) for name in names("runtimes"))


def recognize(path: Path) -> Exporter:
    """The exporter whose container `path` is; raises what `unreadable` finds when none knows it."""
    for name in names("exporters"):
        candidate = exporter(name)
        if candidate.recognizes(path):
            return candidate
    raise unreadable(path, names("exporters"))


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open any readable model: a Hugging Face folder, a quantized folder, or a single-file artifact.

    Headers are read and checked; weights are read later, through the checkpoint's views.

    Raises:
        What `unreadable` finds where no exporter knows `path`, and what its reader raises.
    """
    return recognize(Path(path)).read(Path(path))


def opened(model: str | Path | Checkpoint) -> Checkpoint:
    """A model as callers may give it: a checkpoint as it is, a path opened; raises what `open_checkpoint` raises."""
    return open_checkpoint(model) if isinstance(model, (str, Path)) else model
