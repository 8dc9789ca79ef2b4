"""`quantkit run`: text out of any readable artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantkit.cli.options import Engine, Json
from quantkit.cli.output import Output


def run(
    artifact: Annotated[Path, typer.Argument(help="A model folder, a quantized folder, or a single-file artifact.")],
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="Text to continue.")],
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Stop after this many tokens.")] = 64,
    chat: Annotated[bool, typer.Option("--chat", help="Wrap the prompt as a user turn of the chat template.")] = False,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0 = always the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option("--top-p", min=0.01, max=1.0, help="Sample from this share of mass.")] = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the sampling.")] = 0,
    engine: Engine = "auto",
    as_json: Json = False,
) -> None:
    """Continue a prompt, streaming. The engine only computes logits; sampling is the same everywhere."""
    from quantkit import Sampling, generate

    output = Output(as_json=as_json)
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    continuation = generate(artifact, prompt, sampling, chat=chat, engine=engine)
    pieces: list[str] = []
    for piece in continuation:
        pieces.append(piece)
        output.stream(piece)
    output.result(
        {
            "engine": continuation.engine,
            "prompt": continuation.prompt,
            "text": "".join(pieces),
            "token_ids": continuation.token_ids,
        },
        lines=[""],
    )
