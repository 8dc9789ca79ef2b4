"""`quantkit formats`: what can be written and read, and by which engines here."""

from __future__ import annotations

from quantkit.cli.options.shared import Json, Quiet
from quantkit.cli.output import Output, table


def formats(quiet: Quiet = False, as_json: Json = False) -> None:
    """List the containers that can be written and read, the engines that load them, and whether they run here."""
    from quantkit import containers, engines

    output = Output(as_json=as_json, quiet=quiet)
    missing = {engine.name: engine.missing() for engine in engines()}
    rows = table("format", "types or targets", "engines", "what it is")
    for container in containers():
        kinds = " ".join((*container.types, *container.targets))
        rows.add_row(container.name, kinds, ", ".join(container.engines), container.summary)
    widths = "; ".join(f"{c.name} {' '.join(map(str, c.widths))}" for c in containers() if c.widths)
    here = table("engine", "here", "loads", "of")
    for engine in engines():
        loads = ", ".join(engine.formats)
        here.add_row(engine.name, missing[engine.name] or "yes", loads, ", ".join(engine.architectures))
    output.result(
        {
            "formats": [
                {
                    "name": c.name,
                    "types": list(c.types),
                    "targets": list(c.targets),
                    "widths": list(c.widths),
                    "engines": list(c.engines),
                    "summary": c.summary,
                }
                for c in containers()
            ],
            "engines": [
                {
                    "name": e.name,
                    "formats": list(e.formats),
                    "architectures": list(e.architectures),
                    "available": missing[e.name] is None,
                }
                for e in engines()
            ],
        },
        rows,
        here,
        lines=[f"codes can be stored wider than they are (export --bits): {widths}"],
    )
