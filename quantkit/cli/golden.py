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
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Record the float32 logits of the original model on the bundled prompts, for `verify --golden`."""
    from quantkit.artifacts.publishing import publish
    from quantkit.registry import open_checkpoint
    from quantkit.text.tokenizer import open_tokenizer
    from quantkit.verification.golden import record
    from quantkit.verification.prompts import default_prompts

    output = Output(as_json=as_json)
    checkpoint = open_checkpoint(model)
    prompts = default_prompts(open_tokenizer(checkpoint), max_tokens=checkpoint.spec.max_position_embeddings)
    for note in checkpoint.notes:
        output.note(f"note: {note}")
    with output.progress(f"reading {model.name}") as progress:
        planned = record(checkpoint, prompts)
        progress("recording logits", 0, planned.size)
        done = publish(planned, out, inputs=checkpoint.inputs, overwrite=overwrite, progress=progress)
    rows = table("prompt", "tokens", right=("tokens",))
    for prompt in prompts:
        rows.add_row(prompt.name, str(len(prompt.token_ids)))
    output.result(
        {"path": str(out), "size": done.size, "prompts": {p.name: len(p.token_ids) for p in prompts}},
        rows,
        lines=[f"{out}: {human_size(done.size)}, logits of {model.name} on {len(prompts)} prompts"],
    )
