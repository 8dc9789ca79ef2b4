"""Which engine runs an artifact here."""

from __future__ import annotations

from quantkit import registry
from quantkit.errors import BadOption, EngineFailed, MissingDependency, chosen
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.context import check_dense
from quantkit.protocols import Runtime

AUTO = "auto"
"""Asks for the first real engine that is there, else for the oracle."""
ORACLE = "reference"
"""The engine that every container must be readable by; `auto` falls back to it."""
NO_ENGINE = "none"
"""Asks that nothing be run, not even the oracle."""


def engine_name(name: str, *further: str) -> str:
    """The engine that `name` means in any case, `AUTO`, or one of the words `further`; raises `BadOption`."""
    return chosen(name, (AUTO, *further, *registry.names("runtimes")), problem=f"unknown engine {name[:80]!r}")


def choose_engine(name: str, checkpoint: Checkpoint) -> Runtime:
    """The runtime called `name`; "auto" = the first real engine here that runs `checkpoint`, else the oracle.

    Raises:
        BadOption: an unknown engine, or one that does not load this container or has no class for the model.
        MissingDependency: the engine is not installed.
    """
    name = engine_name(name)
    if name == AUTO:
        return real_engine(checkpoint) or registry.runtime(ORACLE)
    runtime, container = registry.runtime(name), checkpoint.format
    if container not in runtime.formats:
        raise BadOption(
            f"{name} does not load {container}", hint=f"engines for {container}: {', '.join(_engines(container))}"
        )
    family = checkpoint.spec.architecture
    if checkpoint.spec.lightning is not None and family not in runtime.architectures:
        raise BadOption(f"{name} knows no {family}", hint=f"--engine {ORACLE} runs it")
    problem = runtime.missing()
    if problem is not None:
        raise MissingDependency(f"{name} cannot run here: {problem}")
    return runtime


def engine_of(name: str, checkpoint: Checkpoint) -> Runtime | None:
    """The real engine that a verification asks, None where it runs none ("none", "reference", "auto" without one).

    Raises:
        What `choose_engine` raises; EngineFailed: the engine does not take this artifact. UnsupportedModel: nobody can
        verify it.
    """
    check_dense(checkpoint, "verify")
    if name == NO_ENGINE:
        return None
    runtime = real_engine(checkpoint) if name == AUTO else choose_engine(name, checkpoint)
    if runtime is None or runtime.name == ORACLE:
        return None
    refusal = runtime.refuses(checkpoint)
    if refusal is not None:
        raise EngineFailed(f"{checkpoint.path}: {runtime.name} cannot run this: {refusal}")
    return runtime


def real_engine(checkpoint: Checkpoint) -> Runtime | None:
    """The first installed engine other than the oracle that runs this artifact, in the exporter's order, or None."""
    for name in _engines(checkpoint.format):
        if name != ORACLE and name in registry.names("runtimes"):
            runtime = registry.runtime(name)
            if runtime.missing() is None and runs(runtime, checkpoint):
                return runtime
    return None


def runs(runtime: Runtime, checkpoint: Checkpoint) -> bool:
    """Whether an engine takes this container, this architecture, and this very artifact; installed or not."""
    known = checkpoint.format in runtime.formats and checkpoint.spec.architecture in runtime.architectures
    return known and runtime.refuses(checkpoint) is None


def _engines(container: str) -> tuple[str, ...]:
    return registry.exporter(container).engines
