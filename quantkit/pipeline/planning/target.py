"""Containers that a plan is asked for, and what it finds out about each."""

from __future__ import annotations

from dataclasses import dataclass, replace

from quantkit import registry
from quantkit.errors import BadOption, chosen
from quantkit.protocols import ExportOptions, Verdict

AS_IT_IS = ExportOptions()
ONLY_TYPE = "default"
"""Said of containers that have no types to choose from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One container that was asked for: its exact size, or why it cannot hold the result.

    bits: what narrower codes are stored in, None = as they are. engines: those that load it. seconds, memory:
    what writing is estimated to take, see `Plan`. kernels: what every engine's kernels say to it. loads_in: the same in
    one line, None where the container cannot hold it. attention: which of the engines follow the model's
    `sparse_config`, in one line; None where it has none.
    """

    format: str
    type: str
    arch: str
    bits: int | None
    size: int | None
    bits_per_weight: float | None
    engines: tuple[str, ...]
    seconds: float | None = None
    memory: int | None = None
    refusal: str | None = None
    hint: str | None = None
    notes: tuple[str, ...] = ()
    kernels: tuple[Verdict, ...] = ()
    loads_in: str | None = None
    attention: str | None = None

    @property
    def label(self) -> str:
        """In the words of `parse_target`."""
        kind = "" if self.type == ONLY_TYPE else self.type
        return f"{self.format}:{kind}:{self.bits or ''}".rstrip(":")


def parse_target(text: str, others: ExportOptions = AS_IT_IS) -> tuple[str, ExportOptions]:
    """Read FORMAT, FORMAT:TYPE or FORMAT:TYPE:BITS, such as `gguf:q4_0` or `gptq::4`.

    others: the options that the text says nothing of, `bits` among them where it has none; its type is not read.
    Whether a format has `ops`, a `context`, `attention` and `blocks`, its exporter says.

    Names are taken in any case.

    Raises:
        BadOption: an unknown format, or a type, target or width of codes that the format does not have.
    """
    name, kind, width = (*text.strip().split(":", 2), "", "")[:3]
    exporter = registry.exporter(name)
    name = exporter.name
    if kind:
        problem = f"{name} has no type {kind[:80]!r}"
        kind = chosen(kind, exporter.types, problem=problem, called=f"types of {name}")
    target = others.target
    if target is not None:
        problem = f"{name} has no target {target[:80]!r}"
        if not exporter.targets:
            raise BadOption(problem, hint="leave --target out")
        target = chosen(target, exporter.targets, problem=problem, called=f"targets of {name}")
    bits = others.bits
    if width:
        bits = int(width) if width.isdecimal() and len(width) == 1 else 0
    if bits is not None and bits not in exporter.widths:
        choices = ", ".join(map(str, exporter.widths)) or "none; leave it out"
        raise BadOption(f"{name} has no choice of {width or bits} bits", hint=f"widths of {name}: {choices}")
    return name, replace(others, type=kind or None, target=target, bits=bits)
