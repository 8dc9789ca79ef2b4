"""Faults of the comparison: an artifact that is held against itself, or against what is not its original."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.faults.fault import (
    IDENTITY,
    NUMBERS,
    Fault,
    Inputs,
    Level,
    NotApplicable,
    Proof,
    Trial,
    Way,
)
from benchmarks.faults.weights import of_layer, read, with_arrays
from benchmarks.faults.workbench import Variant, Workbench, make
from quantkit import registry
from quantkit.artifacts.manifest import manifest_path
from quantkit.artifacts.publishing import publish
from quantkit.models.checkpoint import Checkpoint
from quantkit.protocols import ExportOptions


def against_own_golden(bench: Workbench, variant: Variant) -> Inputs:
    """A golden file recorded from the artifact itself."""
    path = bench.honest(variant).path
    return Inputs(path, golden=bench.record(path, f"own {variant.name} {variant.container}"))


def against_itself(bench: Workbench, variant: Variant) -> Inputs:
    """The artifact as its own original."""
    path = bench.honest(variant).path
    return Inputs(path, against=path)


def against_own_parent_golden(bench: Workbench, variant: Variant) -> Inputs:
    """A golden file recorded from the quantized folder that the artifact was exported from."""
    made = bench.honest(variant)
    if made.parent is None:
        raise NotApplicable("no parent")
    return Inputs(made.path, golden=bench.record(made.parent, f"parent {variant.name}"))


def against_own_values(bench: Workbench, variant: Variant) -> Inputs:
    """The artifact's weights, written as a dense model, as its original."""
    return Inputs(bench.honest(variant).path, against=dequantized(bench, variant))


def against_golden_of_own_values(bench: Workbench, variant: Variant) -> Inputs:
    """A golden file recorded from the artifact's weights, written as a dense model."""
    dense = dequantized(bench, variant)
    return Inputs(bench.honest(variant).path, golden=bench.record(dense, f"values {variant.name} {variant.container}"))


def dequantized(bench: Workbench, variant: Variant) -> Path:
    """The weights of the honest artifact as a dense folder without a manifest."""
    if variant.grid is None:
        raise NotApplicable("dense already")
    path, folder = bench.honest(variant).path, bench.fresh_folder() / "dense"
    checkpoint = registry.open_checkpoint(path)
    publish(registry.exporter("hf").prepare(checkpoint, ExportOptions(type="f32")), folder, inputs=checkpoint.inputs)
    manifest_path(folder).unlink()
    return folder


def against_strangers_golden(bench: Workbench, variant: Variant) -> Inputs:
    """The golden file of another model of the same shape."""
    return Inputs(bench.honest(variant).path, golden=bench.record(stranger(bench), "stranger"))


def against_stranger(bench: Workbench, variant: Variant) -> Inputs:
    """Another model of the same shape as the original."""
    return Inputs(bench.honest(variant).path, against=stranger(bench))


def strangers_artifact(bench: Workbench, variant: Variant) -> Inputs:
    """An honest artifact of another model of the same shape, held against our golden file."""
    folder = bench.fresh_folder()
    return Inputs(make(registry.open_checkpoint(stranger(bench)), variant, folder).path, golden=bench.golden)


def strangers_artifact_against(bench: Workbench, variant: Variant) -> Inputs:
    """The same, held against our original."""
    return replace(strangers_artifact(bench, variant), golden=None, against=bench.model)


def more_quantized(bench: Workbench, variant: Variant) -> Inputs:
    """The artifact of another run, with fewer bits or scales, held against our quantized folder as its parent."""
    grid = variant.grid
    if grid is None:
        raise NotApplicable("no parent")
    coarser = replace(grid, bits=grid.bits - 1) if grid.bits > 2 else replace(grid, group_size=2 * grid.group_size)
    fewer = Variant("coarser", coarser, variant.container, variant.arch)
    return Inputs(bench.honest(fewer).path, against=bench.honest(replace(variant, container="folder")).path)


def stranger(bench: Workbench) -> Path:
    """Another model of the same shape, config and tokenizer: as if trained on, made once."""
    folder = bench.scratch / "another model"
    if not folder.exists():
        source = bench.source()
        publish(registry.exporter("hf").prepare(trained_on(source), ExportOptions()), folder, inputs=source.inputs)
        manifest_path(folder).unlink()
    return folder


def trained_on(model: Checkpoint) -> Checkpoint:
    """Every matrix moved a little: what a fine-tuned sibling looks like."""
    random, arrays = np.random.default_rng(3), {}
    for layer in range(model.spec.num_hidden_layers):
        for role in model.spec.linear_roles:
            values = read(model, of_layer(layer, role))
            arrays[of_layer(layer, role)] = values + 0.02 * values.std() * random.standard_normal(values.shape)
    return with_arrays(model, arrays)


CHANGES: Mapping[str, Callable[[Workbench, Variant], Inputs]] = {
    "golden file of the artifact itself": against_own_golden,
    "--against the artifact itself": against_itself,
    "golden file of the quantized parent": against_own_parent_golden,
    "golden file of its own weights made dense": against_golden_of_own_values,
    "--against its own weights made dense": against_own_values,
    "golden file of another model": against_strangers_golden,
    "--against another model": against_stranger,
    "artifact of another model": strangers_artifact,
    "artifact of another model, --against": strangers_artifact_against,
    "--against another run": more_quantized,
}

FAULTS = tuple(
    Fault(
        name=name,
        kind="provenance",
        level=Level.INPUTS,
        change=change,
        trials=(Trial(Way.HONEST, Proof.GOLDEN, (IDENTITY, NUMBERS)),),
    )
    for name, change in CHANGES.items()
)
