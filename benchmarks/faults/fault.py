"""What a seeded fault is: a change that makes a wrong artifact of an honest one, and the steps that must catch it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

FILES, IDENTITY, NUMBERS, PREDICTIONS, ENGINE = "files", "identity", "numbers", "predictions", "engine"
"""The steps of `verify` in order. What readers refuse fails in IDENTITY, or in NUMBERS where they find it late."""


CONTAINERS = ("folder", "gguf")


class NotApplicable(Exception):
    """The fault makes no sense for this artifact; the message says why."""


class Level(Enum):
    """What `Fault.change` takes and returns.

    SOURCE: the original `Checkpoint`, before it is quantized, to a wrong one.
    CODES: one `QuantizedTensor` to a wrong one; `Fault.tensor` says which.
    BYTES: the folder or file of a finished artifact, changed in place; nothing is returned.
    ENGINE: as SOURCE, but the artifact is right: the engine alone reads the wrong one.
    INPUTS: a `Workbench` and a `Variant`, to the `Inputs` of a `verify` that must not pass.
    """

    SOURCE = "source"
    CODES = "codes"
    BYTES = "bytes"
    ENGINE = "engine"
    INPUTS = "inputs"


class Way(Enum):
    """How the change gets into the artifact.

    DAMAGED: bytes changed after the artifact was finished; its manifest is as it was.
    SIGNED: the same, but sizes and SHA-256 in the manifest are made to fit; what else it says stays.
    WRITTEN: the exporter itself was given the wrong model, and the manifest claims the original as its source.
    CONVERTED: the wrong model lay on disk, and was quantized and exported as any other.
    HONEST: the artifact is right, what it is compared with is not.
    """

    DAMAGED = "damaged"
    SIGNED = "signed"
    WRITTEN = "written"
    CONVERTED = "converted"
    HONEST = "honest"


class Proof(Enum):
    """What the artifact is compared with: the golden file, the original, or the quantized folder it was made from."""

    GOLDEN = "golden"
    ORIGINAL = "original"
    PARENT = "parent"


@dataclass(frozen=True, slots=True)
class Inputs:
    """What `verify` is given: an artifact, and a golden file or a model to compare it with.

    engine_reads: the file that the engine is made to read in place of the artifact; None = no engine is asked.
    """

    path: Path
    golden: Path | None = None
    against: Path | None = None
    engine_reads: Path | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """No artifact: whoever should write it refuses, by name."""

    reason: str


@dataclass(frozen=True, slots=True)
class Trial:
    """One way in, what the artifact is then compared with, and the steps of which one must catch it.

    containers: where that can be caught.
    """

    way: Way
    proof: Proof
    steps: tuple[str, ...]
    containers: tuple[str, ...] = CONTAINERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A seeded fault.

    name: what was done. kind: the table's section. change: see `Level`. tensor: which weight CODES changes.
    containers: "folder", "gguf" or both.
    """

    name: str
    kind: str
    level: Level
    change: Callable[..., Any]
    trials: tuple[Trial, ...]
    tensor: str = ""
    containers: tuple[str, ...] = CONTAINERS


SPEC_TRIALS = (
    Trial(Way.SIGNED, Proof.GOLDEN, (IDENTITY,)),
    Trial(Way.WRITTEN, Proof.GOLDEN, (IDENTITY,)),
    Trial(Way.WRITTEN, Proof.ORIGINAL, (IDENTITY,)),
)
"""Whatever a model says about itself: config, tokens, tokenizer, template."""

SUBTLE_WEIGHT_TRIALS = (
    Trial(Way.SIGNED, Proof.GOLDEN, (NUMBERS,)),
    Trial(Way.WRITTEN, Proof.ORIGINAL, (NUMBERS,)),
    Trial(Way.CONVERTED, Proof.GOLDEN, (IDENTITY, NUMBERS)),
)
"""Weights that differ by less than rounding to few bits: without the original, a manifest that lies is believed."""

WEIGHT_TRIALS = (*SUBTLE_WEIGHT_TRIALS, Trial(Way.WRITTEN, Proof.GOLDEN, (NUMBERS, PREDICTIONS)))
"""Weights that make another model."""

SUBTLE_CODE_TRIALS = (
    Trial(Way.SIGNED, Proof.GOLDEN, (NUMBERS,)),
    Trial(Way.WRITTEN, Proof.ORIGINAL, (NUMBERS,), ("folder",)),
    Trial(Way.WRITTEN, Proof.PARENT, (NUMBERS,)),
)
"""A GGUF file may hold codes otherwise than the run made them; its parent tells, and is caught itself."""
CODE_TRIALS = (*SUBTLE_CODE_TRIALS, Trial(Way.WRITTEN, Proof.GOLDEN, (NUMBERS, PREDICTIONS)))

FILE_TRIALS = (Trial(Way.DAMAGED, Proof.GOLDEN, (FILES,)), Trial(Way.DAMAGED, Proof.ORIGINAL, (FILES,)))
