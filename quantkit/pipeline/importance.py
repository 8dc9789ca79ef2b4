"""An importance matrix of a model on a text: how large the inputs of its matrices are, column by column."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol, cast

import numpy as np

from quantkit import registry
from quantkit.artifacts.publishing import Published, publish
from quantkit.calibration.compute import Compute, check_device, check_torch
from quantkit.calibration.importance.chunks import text_chunks
from quantkit.calibration.importance.measured import Importance
from quantkit.calibration.text_file import read_text_file
from quantkit.errors import BadOption
from quantkit.files.planned_files import PlannedArtifact
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.context import check_dense, check_length
from quantkit.models.spec import ModelSpec
from quantkit.progress import Progress
from quantkit.text.tokenizer import find_tokenizer

CONTAINER = "gguf"
"""Whose tools read such files."""
VERB = "imatrix"
CHUNK_LENGTH = 512
"""llama.cpp's, too."""
ONE_THREAD = Compute()


class ImportanceContainer(Protocol):
    """An exporter that writes what was measured."""

    def planned_importance(self, checkpoint: Checkpoint, importance: Importance) -> PlannedArtifact:
        """Plan the file; the sums are asked for when it is written."""
        ...


def measure_importance(
    model: str | Path | Checkpoint,
    text: str | Path,
    out: str | Path,
    *,
    length: int = CHUNK_LENGTH,
    chunks: int | None = None,
    process_output: bool = False,
    compute: Compute = ONE_THREAD,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Published:
    """Measure the inputs of every linear layer on a text, and write llama.cpp's GGUF importance matrix of them.

    `export` reads it (`BlockOptions.imatrix`), and so does llama-quantize. One block is in memory at a time, with some
    thousand tokens of text.

    Args:
        model: a folder, a single-file artifact, or an open checkpoint; quantized weights are taken with the values that
            they stand for.
        text: .txt, .jsonl or .parquet, taken as one row of tokens that is cut into chunks.
        out: the file to make.
        length: tokens of a chunk.
        chunks: at most so many, the first ones; None = all of the text.
        process_output: whether the head is measured as well ("output.weight"), where it is a matrix of its own.
        compute: threads, device and precision of the forwards.
        overwrite: replace what lies at `out`, at the very end.
        progress: told how far it is.

    Raises:
        BadOption: a length beyond the model's context, less text than one chunk, a model whose tokenizer cannot be
            read, or `process_output` where the head is the embedding.
        MissingDependency: torch is not installed.
        NonFiniteValues: NaN or infinity in a weight or its inputs.
        What reading the model and the text, and `publish`, raise; all are `QuantkitError`s.
    """
    checkpoint = registry.opened(model)
    check_dense(checkpoint, "measure")
    weights = tuple(_measured(checkpoint.spec, head=process_output))
    _check(checkpoint.spec, compute, length=length, chunks=chunks)
    rows = _chunks(checkpoint, Path(text), length=length, chunks=chunks)

    def squares() -> Mapping[str, np.ndarray]:
        import torch  # noqa: PLC0415 - heavy, wanted only here

        from quantkit.calibration.importance.squares import input_squares  # noqa: PLC0415 - imports torch

        return input_squares(
            checkpoint,
            rows,
            head=process_output,
            threads=compute.threads,
            device=torch.device(compute.device),
            bfloat16=compute.in_bfloat16(),
            progress=progress,
        )

    importance = Importance(weights=weights, text=Path(text).name, chunks=len(rows), length=length, squares=squares)
    container = cast(ImportanceContainer, registry.exporter(CONTAINER))
    planned = container.planned_importance(checkpoint, importance)
    made_with = {"device": compute.device, "bfloat16": compute.in_bfloat16()}
    planned = replace(
        planned,
        options={**planned.options, "process_output": process_output, **made_with},
        notes=(*planned.notes, *_notes(checkpoint.spec, head=process_output)),
    )
    return publish(planned, Path(out), inputs=(*checkpoint.inputs, Path(text)), overwrite=overwrite)


def _measured(spec: ModelSpec, *, head: bool) -> Iterator[str]:
    """Names of the matrices whose inputs are measured."""
    for layer in range(spec.num_hidden_layers):
        for group in spec.groups:
            yield from (spec.weight_name(layer, role) for role in group.roles)
    if not head:
        return
    if spec.tie_word_embeddings:
        raise BadOption(
            "the head of this model is its embedding, of which llama.cpp's matrices tell nothing",
            hint="leave --process-output out",
        )
    yield spec.head_name


def _check(spec: ModelSpec, compute: Compute, *, length: int, chunks: int | None) -> None:
    if length < 2 or (chunks is not None and chunks < 1):
        raise BadOption("there must be at least one chunk, of at least two tokens", hint="see --length and --chunks")
    check_length(spec, length, what="a chunk")
    check_torch("measuring inputs")
    if compute.device != "cpu":
        check_device(compute.device, VERB, calibrated=True)


def _chunks(checkpoint: Checkpoint, text: Path, *, length: int, chunks: int | None) -> list[np.ndarray]:
    tokenizer = find_tokenizer(checkpoint)
    if isinstance(tokenizer, str):
        raise BadOption(f"{text}: {tokenizer}, so no text can be read", hint="give a model with its tokenizer")
    return text_chunks(tokenizer, read_text_file(text), length=length, most=chunks)


def _notes(spec: ModelSpec, *, head: bool) -> Iterator[str]:
    if spec.tie_word_embeddings:
        yield "nothing is told of the embedding, which is the head too, as in llama.cpp's matrices"
    elif not head:
        yield "nothing is told of embedding and head, as in llama.cpp's matrices; --process-output adds the head"
