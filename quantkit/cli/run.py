"""`quantkit run`: text out of any readable artifact."""

from __future__ import annotations

import sys
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
    from quantkit.registry import open_checkpoint
    from quantkit.text.tokenizer import StreamDecoder, open_tokenizer
    from quantkit.verification.engines import choose_engine
    from quantkit.verification.generation import generate

    output = Output(as_json=as_json)
    checkpoint = open_checkpoint(artifact)
    tokenizer = open_tokenizer(checkpoint)
    text = tokenizer.chat([{"role": "user", "content": prompt}]) if chat else prompt
    token_ids = tokenizer.encode(text)
    runtime = choose_engine(engine, checkpoint)
    decoder = StreamDecoder(tokenizer, token_ids)
    produced: list[int] = []
    pieces: list[str] = []
    with runtime.open(artifact) as session:
        for token in generate(
            session,
            token_ids,
            max_tokens=max_tokens,
            eos_token_ids=checkpoint.spec.eos_token_ids,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
        ):
            produced.append(token)
            pieces.append(decoder.push(token))
            if not as_json:
                sys.stdout.write(pieces[-1])
                sys.stdout.flush()
    pieces.append(decoder.finish())
    output.result(
        {"engine": runtime.name, "prompt": text, "text": "".join(pieces), "token_ids": produced}, lines=[pieces[-1]]
    )
