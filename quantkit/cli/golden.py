"""`quantkit golden`: record what the original model predicts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantkit.cli.options import Json, Out, Overwrite
from quantkit.cli.output import Output, human_size, table


def golden(
    model: Annotated[Path, typer.Argument(help="The original model.")],
    out: Out,
    quantized: Annotated[
        bool,
        typer.Option("--quantized", help="Record a quantized model all the same; no artifact is verified by it."),
    ] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Record what the original model is and predicts, for `verify --golden`: its scalars, tokenizer, digests and
    sketches of its weights, float32 logits of the bundled prompts, and what rounding costs it.
    """
    from quantkit.artifacts.publishing import publish
    from quantkit.errors import BadOption
    from quantkit.registry import open_checkpoint
    from quantkit.text.tokenizer import open_tokenizer
    from quantkit.verification.prompts import default_prompts
    from quantkit.verification.recording import is_quantized, record

    output = Output(as_json=as_json)
    checkpoint = open_checkpoint(model)
    if is_quantized(checkpoint) and not quantized:
        raise BadOption(
            f"{model} is quantized: golden files are recorded from the original, dense model",
            hint="give the model that it was made from; --quantized records it all the same, and proves nothing",
        )
    prompts = default_prompts(open_tokenizer(checkpoint), max_tokens=checkpoint.spec.max_position_embeddings)
    for note in checkpoint.notes:
        output.note(f"note: {note}")
    with output.progress(f"reading {model.name}") as progress:
        planned = record(checkpoint, prompts, progress=progress)
        progress("recording logits", 0, planned.size)
        done = publish(planned, out, inputs=checkpoint.inputs, overwrite=overwrite, progress=progress)
    rows = table("prompt", "tokens", right=("tokens",))
    for prompt in prompts:
        rows.add_row(prompt.name, str(len(prompt.token_ids)))
    output.result(
        {"path": str(out), "size": done.size, "prompts": {p.name: len(p.token_ids) for p in prompts}},
        rows,
        lines=[f"{out}: {human_size(done.size)}, {model.name} on {len(prompts)} prompts"],
    )
