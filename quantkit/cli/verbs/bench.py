"""`quantkit bench`: how fast an engine loads and runs an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantkit.cli.options.shared import Engine, Json, Quiet
from quantkit.cli.output import Output, called, human_size, table


def bench(
    artifact: Annotated[Path, typer.Argument(help="A model folder, a quantized folder, or a single-file artifact.")],
    engine: Engine = "auto",
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", min=1, help="Tokens of the prompt.")] = 128,
    decode_tokens: Annotated[int, typer.Option("--decode-tokens", min=1, help="Tokens generated behind it.")] = 64,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="How often; rates are medians.")] = 3,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Time an artifact in an engine: loading, the prompt, and token by token; with the memory that it takes.

    At the engine's exact settings, which `verify` uses as well, one sequence at a time, with the logits of every token
    brought back; beside it what the engine's own benchmark says, where it has one. Compare within one run of a machine
    that has nothing else to do.
    """
    from quantkit import bench as measure

    output = Output(as_json=as_json, quiet=quiet)
    with output.progress(f"timing {called(artifact)}") as progress:
        speed = measure(
            artifact,
            engine=engine,
            prompt_tokens=prompt_tokens,
            decode_tokens=decode_tokens,
            rounds=rounds,
            progress=progress,
        )
    rows = table("", "median", "lowest", "highest", right=("median", "lowest", "highest"))
    for name, typical, rates in (
        ("prompt tokens/s", speed.prompt_rate, speed.prompt_rates),
        ("decode tokens/s", speed.decode_rate, speed.decode_rates),
    ):
        rows.add_row(name, *(f"{rate:,.1f}" for rate in (typical, min(rates), max(rates))))
    if speed.own_tool is not None:
        name, prompt_rate, decode_rate = speed.own_tool
        rows.add_row(f"prompt tokens/s, {name}", f"{prompt_rate:,.1f}", "", "")
        rows.add_row(f"decode tokens/s, {name}", f"{decode_rate:,.1f}", "", "")
    memory = "unknown here" if speed.peak_memory is None else human_size(speed.peak_memory)
    output.result(
        {"path": str(artifact), **speed.to_json()},
        rows,
        lines=[
            f"{artifact}: {speed.container} in {speed.engine}, loaded in {speed.load_seconds:.2f} s, "
            f"peak memory {memory}; {rounds} x {prompt_tokens} + {decode_tokens} tokens"
        ],
    )
