"""Recording the original: facts of its weights and tokenizer, its logits, and what round-to-nearest costs it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantkit import registry
from quantkit.artifacts.manifest import read_manifest
from quantkit.artifacts.publishing import Published, publish, source_digest
from quantkit.calibration.compute import check_torch
from quantkit.errors import BadOption, GoldenMismatch, UnsupportedModel
from quantkit.files.planned_files import PlannedArtifact, PlannedFile, PlannedTensor, Unit
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.context import check_dense, check_length
from quantkit.models.spec import LINEAR_ROLES
from quantkit.progress import Progress
from quantkit.verification.golden import (
    COMMAND,
    DIGEST_BYTES,
    FRONT,
    LOGITS_DTYPE,
    MAGIC,
    VERSION,
    Golden,
)
from quantkit.verification.metrics import kl_divergence
from quantkit.verification.original import source_name
from quantkit.verification.prompts import Prompt, prompts_for
from quantkit.verification.sparse import section
from quantkit.verification.sparse.facts import SparseFacts, sparse_facts
from quantkit.verification.sparse.oracle import DENSE, SPARSE, checked_attention, sparse_oracle
from quantkit.verification.steps.identity import spec_to_json, text_facts
from quantkit.verification.steps.limits import RoundingCost
from quantkit.verification.weight_facts import weight_facts
from quantkit.verification.witness import agreement

if TYPE_CHECKING:
    from quantkit.models.torch_model import MiniCPM

BITS = (8, 4, 3, 2)
"""Whose cost is recorded."""
GROUPS = (128, 64, 32)
"""Columns per scale, the first that divides a layer's width; else the row."""
LOST_BEFORE = "these weights were quantized before and are taken for the original: what that lost is not measured"


def record(
    checkpoint: Checkpoint,
    prompts: Sequence[Prompt],
    *,
    sparse: SparseFacts | None = None,
    progress: Progress | None = None,
) -> PlannedArtifact:
    """Plan the golden file of `checkpoint`; see `recorded`. sparse: what it does when it attends sparsely, if wanted.

    Raises:
        What `recorded` raises.
    """
    golden = recorded(checkpoint, prompts, progress=progress)
    witness = agreement(checkpoint, prompts, golden.logits)
    header = json.dumps(
        {
            "command": COMMAND,
            "spec": spec_to_json(golden.spec),
            "quantized": golden.quantized,
            "text": asdict(golden.text),
            "prompts": [asdict(prompt) for prompt in prompts],
            "tensors": {name: facts.to_json() for name, facts in golden.tensors.items()},
            "folded": golden.folded,
            "rounding": [asdict(cost) for cost in golden.rounding],
            "source": golden.source,
            **({section.KEY: section.to_header(sparse)} if sparse is not None else {}),
        },
        sort_keys=True,
    ).encode()
    front = FRONT.pack(MAGIC, VERSION, len(header)) + header
    tensors = tuple(
        PlannedTensor(prompt.name, "float32", logits.shape, LOGITS_DTYPE.itemsize * logits.size)
        for prompt, logits in zip(prompts, golden.logits, strict=True)
    )
    if sparse is not None:
        tensors += tuple(
            PlannedTensor(array.name, str(array.dtype.newbyteorder("=")), array.shape, array.nbytes)
            for array in section.arrays(section.to_header(sparse), golden.spec)
        )
    size = len(front) + sum(tensor.nbytes for tensor in tensors) + DIGEST_BYTES
    unit = Unit("golden", size, lambda: _produce(front, golden.logits, sparse))
    return PlannedArtifact(
        format="golden",
        folder=False,
        files=(PlannedFile("golden.bin", (unit,)),),
        tensors=tensors,
        options={"command": COMMAND},
        notes=(*checkpoint.notes, *([witness] if witness is not None else [])),
    )


def record_golden(
    model: str | Path | Checkpoint,
    out: str | Path,
    *,
    quantized: bool = False,
    attention: str = DENSE,
    variant: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Published:
    """Record what the original model is and what it predicts on the bundled prompts, for `verify`.

    Args:
        model: the original: a folder, a single-file artifact, or an open checkpoint.
        out: the file to make.
        quantized: record a quantized model all the same. Where its original is known, no artifact is verified by it.
        attention: "sparse" = record as well what it does on a long prompt that it attends to sparsely.
        variant: as which code, one of the reference's; None = the default.
        overwrite: replace what lies at `out`, at the very end.
        progress: told how far it is.

    Returns:
        The file; `manifest["notes"]` says what there is to know, such as whether a second witness agrees.

    Raises:
        BadOption: the model is quantized, or an unknown attention or variant.
        UnsupportedModel: the config says nothing of sparse attention, which was asked for.
        MissingDependency: torch, or what reads the model's tokenizer, is not installed.
        GoldenMismatch: transformers, where it is installed and knows the model, computes other logits.
        What reading, `recorded` and `publish` raise; all are `QuantkitError`s.
    """
    checkpoint = registry.opened(model)
    check_dense(checkpoint, "record")
    manifest = manifest_of(checkpoint)
    if not quantized and (checkpoint.holds_codes or has_original(checkpoint, manifest)):
        raise BadOption(
            f"{checkpoint.path} is quantized: golden files are recorded from the original, dense model",
            hint="give the model that it was made from; where nobody has that, --quantized takes this for the original",
        )
    checked_attention(attention, variant)
    check_torch("recording golden logits")
    prompts, note = prompts_for(checkpoint, checkpoint.spec)
    sparse = sparse_facts(checkpoint, sparse_oracle(variant), progress=progress) if attention == SPARSE else None
    planned = record(checkpoint, prompts, sparse=sparse, progress=progress)
    notes = [
        *([note] if note is not None else []),
        *([LOST_BEFORE] if checkpoint.holds_codes or _told_weights(manifest) else []),
    ]
    planned = replace(planned, notes=(*planned.notes, *notes))
    return publish(planned, Path(out), inputs=checkpoint.inputs, overwrite=overwrite, progress=progress)


def recorded(
    checkpoint: Checkpoint,
    prompts: Sequence[Prompt],
    *,
    progress: Progress | None = None,
) -> Golden:
    """What a golden file holds, in memory: float32 logits by `quantkit/models/torch_model.py`, on one thread so that
    they repeat. Takes 4 bytes of memory per weight, and the logits.

    Args:
        checkpoint: the original.
        prompts: what it is asked.
        progress: told before each step.

    Raises:
        BadOption: no prompts, or one without tokens or with more than the model's context holds.
        GoldenMismatch: a prompt with tokens outside the vocabulary.
        NonFiniteValues: a weight holds NaN or infinity.
    """
    _check(checkpoint, prompts)
    steps = _Steps(progress, 1 + len(BITS))
    source = source_digest(checkpoint.inputs)
    tensors = {name: weight_facts(view, name=name) for name, view in checkpoint.weights.items()}
    folded = _folded_digests(checkpoint)
    logits, rounding = _computed(checkpoint, prompts, steps)
    return Golden(
        spec=checkpoint.spec,
        quantized=_is_of_a_run(checkpoint),
        text=text_facts(checkpoint),
        source=source,
        tensors=tensors,
        folded=folded,
        rounding=rounding,
        prompts=tuple(prompts),
        logits=logits,
    )


def is_quantized(checkpoint: Checkpoint) -> bool:
    """Whether the weights were quantized once: they are, or the manifest beside them tells of the run."""
    return checkpoint.holds_codes or has_original(checkpoint, manifest_of(checkpoint))


def has_original(checkpoint: Checkpoint, manifest: Mapping[str, Any] | None) -> bool:
    """Whether the weights came out of a quantization whose dense original is known: by their manifest, None = none.

    What others quantized, and what was exported from that, has no original but itself.
    """
    told = _told_weights(manifest).values()
    if any(isinstance(entry, Mapping) and {"origin", "error"} & set(entry) for entry in told):
        return True
    return manifest is not None and checkpoint.holds_codes


def manifest_of(checkpoint: Checkpoint) -> Mapping[str, Any] | None:
    """The manifest beside a checkpoint that lies on a disk; None where there is none."""
    return read_manifest(checkpoint.path) if checkpoint.path.exists() else None


def _told_weights(manifest: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """What a manifest says of weights that are, or were, quantized, by name."""
    weights = (manifest or {}).get("weights")
    entries = weights.get("tensors") if isinstance(weights, Mapping) else None
    return entries if isinstance(entries, Mapping) else {}


def _is_of_a_run(checkpoint: Checkpoint) -> bool:
    """Whether a quantization made it whose original is known: by its manifest, or because it lies on no disk yet."""
    on_disk = checkpoint.path.exists()
    return has_original(checkpoint, manifest_of(checkpoint)) or (checkpoint.holds_codes and not on_disk)


def _check(checkpoint: Checkpoint, prompts: Sequence[Prompt]) -> None:
    if not prompts:
        raise BadOption("no prompts to record")
    vocabulary = checkpoint.spec.vocab_size
    for prompt in prompts:
        if not prompt.token_ids:
            raise BadOption(f"prompt {prompt.name!r} has no tokens")
        if not all(0 <= token < vocabulary for token in prompt.token_ids):
            raise GoldenMismatch(f"prompt {prompt.name!r} has tokens outside the vocabulary of {vocabulary}")
        check_length(checkpoint.spec, len(prompt.token_ids), to_come=1, what=f"prompt {prompt.name!r}")


def _folded_digests(checkpoint: Checkpoint) -> dict[str, Mapping[str, str]]:
    """Digests of the tensors of the folded model that are not the original's own; none where it cannot be folded."""
    try:
        slots = checkpoint.spec.folded().slots()
    except UnsupportedModel:
        return {}
    digests = {}
    for slot in slots:
        source, factor = source_name(checkpoint.weights, slot.name), checkpoint.spec.fold_factor(slot.role)
        if source != slot.name or factor != 1.0:
            digests[slot.name] = weight_facts(checkpoint.weights[source], name=source, factor=factor).digests
    return digests


class _Steps:
    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def begin(self, what: str) -> None:
        if self._progress is not None:
            self._progress(what, self._done, self._total)
        self._done += 1


def _computed(
    checkpoint: Checkpoint, prompts: Sequence[Prompt], steps: _Steps
) -> tuple[list[np.ndarray], tuple[RoundingCost, ...]]:
    """Logits of every prompt, and what rounding costs."""
    from quantkit.models.loading import load_model  # noqa: PLC0415 - imports torch

    steps.begin("the original")
    model = load_model(checkpoint)
    logits = list(_logits(model, prompts))
    costs = []
    for bits in BITS:
        steps.begin(f"the original rounded to {bits} bits")
        error = _round_layers(model, checkpoint, bits)
        pairs = zip(logits, _logits(model, prompts), strict=True)
        costs.append(RoundingCost(bits, error, tuple(kl_divergence(exact, rounded) for exact, rounded in pairs)))
    return logits, tuple(cost for cost in costs if cost.error > 0)


def _logits(model: MiniCPM, prompts: Sequence[Prompt]) -> Iterator[np.ndarray]:
    import torch  # noqa: PLC0415 - heavy, wanted only here

    from quantkit.threads import single_threaded_torch  # noqa: PLC0415

    for prompt in prompts:
        with single_threaded_torch(), torch.no_grad():
            logits = model(torch.tensor([prompt.token_ids]))[0].numpy().astype(LOGITS_DTYPE, copy=False)
        yield logits


def _round_layers(model: MiniCPM, checkpoint: Checkpoint, bits: int) -> float:
    """Put the rounded layers of `checkpoint` into `model`; return their squared relative error."""
    import torch  # noqa: PLC0415 - heavy, wanted only here

    from quantkit.models.loading import read_float32  # noqa: PLC0415 - imports torch

    damage = power = 0.0
    for slot in checkpoint.spec.slots():
        if slot.role in LINEAR_ROLES:
            weight = read_float32(checkpoint.weights[slot.name])
            rounded = nearest(weight, bits)
            damage += float(np.square(weight - rounded, dtype=np.float64).sum())
            power += float(np.square(weight, dtype=np.float64).sum())
            model.get_parameter(slot.name).copy_(torch.from_numpy(rounded))
    return damage / power if power else 0.0


def nearest(weight: np.ndarray, bits: int) -> np.ndarray:
    """Float32 `weight` (rows, cols) on the symmetric grid of each group that reaches its largest magnitude."""
    rows, cols = weight.shape
    width = next((group for group in GROUPS if cols % group == 0), cols)
    groups = weight.reshape(rows, -1, width)
    half = np.float32(2 ** (bits - 1))
    scale = np.abs(groups).max(axis=-1, keepdims=True) / (half - np.float32(0.5))
    scale[scale == 0] = 1
    codes = np.clip(np.rint(groups / scale), -half, half - 1)
    values: np.ndarray = (codes * scale).reshape(rows, cols)
    return values


def _produce(front: bytes, logits: Sequence[np.ndarray], sparse: SparseFacts | None) -> Iterator[bytes]:
    sha256 = hashlib.sha256(front)
    yield front
    dense = (values.tobytes() for values in logits)
    for data in chain(dense, () if sparse is None else section.produced(sparse)):
        sha256.update(data)
        yield data
    yield sha256.digest()
