"""The card as a part of an artifact: planned with it byte for byte, or made again from an artifact's manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from quantkit import __version__, registry
from quantkit.artifacts.manifest import CARD_NAME, read_manifest
from quantkit.errors import BadOption
from quantkit.files.planned_files import PlannedArtifact, PlannedFile, Unit
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.folding import with_architecture
from quantkit.pipeline.card.about import ABOUT, About
from quantkit.pipeline.card.page import Subject, card, head
from quantkit.pipeline.card.source import about
from quantkit.pipeline.planning.verdicts import as_written


def with_card(
    planned: PlannedArtifact,
    model: Checkpoint,
    known: About | None = None,
    report: Callable[[], Mapping[str, Any]] | None = None,
) -> PlannedArtifact:
    """`planned` with what its card tells in the manifest, and, where it is a folder, with the card in it.

    A single file has its manifest beside it and nothing else: a README.md there would be that of the whole folder, in
    which other models may lie. `model_card` makes its card.

    Args:
        planned: what an exporter has planned for `model`.
        model: what is written, quantized weights planned or there.
        known: what is known of the model; None = what lies beside it says.
        report: what a run reports, once every unit was produced; None = nothing is measured.
    """
    told = known or about(model)

    def measured() -> About:
        return told if report is None else told.measured(report())

    files = planned.files
    if planned.folder:  # where the source's own card travels, this one takes its place
        others = (file for file in files if file.name != CARD_NAME)
        files = (*others, _card_file(planned, model, told, measured))
    return replace(planned, files=files, further=lambda: {ABOUT: measured().to_json()})


def _card_file(planned: PlannedArtifact, model: Checkpoint, told: About, measured: Callable[[], About]) -> PlannedFile:
    subject = Subject(
        about=told,
        model=as_written(with_architecture(model, str(planned.options.get("arch", "native"))), planned),
        target=_target(planned.options),
        folder=True,
        size=sum(tensor.nbytes for tensor in planned.tensors),
        version=__version__,
    )

    def produce() -> Sequence[bytes]:
        return (card(replace(subject, about=measured())).encode(),)

    return PlannedFile(CARD_NAME, (Unit("card", len(card(subject).encode()), produce),))


def _target(options: Mapping[str, Any]) -> str | None:
    target = options.get("target")
    return target if isinstance(target, str) else None


def with_head(model: Checkpoint, known: About, container: str) -> Checkpoint:
    """`model` as an exporter is given it: where it was quantized, the card beside it is of what it is to become.

    Containers that keep what a card says in keys of their own would else say what it was, in other sizes than planned.
    """
    if known.method is None:
        return model
    subject = Subject(
        about=known, model=replace(model, format=container), target=None, folder=True, size=0, version=__version__
    )
    data = head(subject).encode()
    return replace(model, files={**model.files, CARD_NAME: lambda: data})


def model_card(artifact: str | Path) -> str:
    """The model card of an artifact of quantkit's, from its manifest and headers: README.md, as hubs read it.

    Folders hold theirs already. Of a single file this makes the one to lie beside it where it is published.

    Raises:
        BadOption: an artifact without a manifest. Others: what opening it and reading its manifest raise.
    """
    path = Path(artifact)
    model = registry.open_checkpoint(path)
    manifest = read_manifest(path)
    if manifest is None:
        raise BadOption(f"{path} has no manifest to make a card of", hint="export it with quantkit")
    return card(
        Subject(
            about=About.from_json(manifest.get(ABOUT)) or about(model),
            model=model,
            target=_target(manifest["options"]),
            folder=path.is_dir(),
            size=sum(tensor["nbytes"] for tensor in manifest["tensors"]),
            version=str(manifest["quantkit"]),
        )
    )
