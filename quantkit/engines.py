"""Which engine runs an artifact here."""

from __future__ import annotations

from quantkit import registry
from quantkit.errors import BadOption, MissingDependency
from quantkit.protocols import Runtime

ORACLE = "reference"
"""The engine that every container must be readable by; `auto` falls back to it."""


def choose_engine(name: str, container: str, architecture: str = "llama") -> Runtime:
    """The runtime called `name`; "auto" = the first real engine that loads `container` and is installed, else the oracle.

    architecture: of the model inside, a `ModelSpec.architecture`; "auto" passes over engines that do not know it.

    Raises:
        BadOption: an unknown engine, or one that does not load this container.
        MissingDependency: the engine is not installed.
    """
    if name == "auto":
        return real_engine(container, architecture) or registry.runtime(ORACLE)
    runtime = registry.runtime(name)
    if container not in runtime.formats:
        raise BadOption(
            f"{name} does not load {container}", hint=f"engines for {container}: {', '.join(_engines(container))}"
        )
    problem = runtime.missing()
    if problem is not None:
        raise MissingDependency(f"{name} cannot run here: {problem}")
    return runtime


def real_engine(container: str, architecture: str = "llama") -> Runtime | None:
    """The first installed engine for this model other than the oracle, in the exporter's order; None if there is none."""
    for name in _engines(container):
        if name == ORACLE or name not in registry.names("runtimes"):
            continue
        runtime = registry.runtime(name)
        known = container in runtime.formats and architecture in runtime.architectures
        if known and runtime.missing() is None:
            return runtime
    return None


def _engines(container: str) -> tuple[str, ...]:
    return registry.exporter(container).engines
