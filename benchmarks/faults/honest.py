"""Right artifacts of every kind, which `verify` must not accuse: containers, architectures, methods, grids, recipes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.conformance import matrix, sources
from benchmarks.faults.fault import Inputs
from benchmarks.faults.workbench import Made, Workbench, variants
from quantkit.artifacts.publishing import publish
from quantkit.calibration.compute import Compute
from quantkit.calibration.samples import CalibrationOptions
from quantkit.errors import UnsupportedSpec
from quantkit.pipeline.options import QuantizeOptions
from quantkit.pipeline.recipe import Recipe
from quantkit.pipeline.runs import export, quantize
from quantkit.protocols import ExportOptions
from quantkit.tensors.schemes.affine_groups import AffineGroups

CALIBRATION = CalibrationOptions(sequences=8, length=256)
CARRIERS = ("gguf", "gptq", "awq", "marlin", "hf")
NAME = "gptq-marlin-{}"
"""Engines look for these words in a folder's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One quantization as a user may ask for it, and the containers that its folder is then exported to."""

    name: str
    scheme: AffineGroups
    method: str
    arch: str = "native"
    choices: Mapping[str, Any] = field(default_factory=dict)
    rules: Sequence[Mapping[str, Any]] = ()


def grid(bits: int, group_size: int, *, symmetric: bool = True, scale_dtype: str = "float16") -> AffineGroups:
    """A grid."""
    return AffineGroups(bits=bits, group_size=group_size, symmetric=symmetric, scale_dtype=scale_dtype)


RUNS = (
    *(
        Run(name=f"{method} {bits} bits g{group}", scheme=grid(bits, group), method=method)
        for method in ("rtn", "gptq", "awq")
        for bits, group in ((4, 128), (3, 128), (4, 32))
    ),
    *(Run(name=f"rtn {bits} bits per row", scheme=grid(bits, -1), method="rtn") for bits in (2, 4, 8)),
    *(Run(name=f"rtn {bits} bits g64", scheme=grid(bits, 64), method="rtn") for bits in (2, 5, 6, 7)),
    Run(name="gptq 2 bits g32", scheme=grid(2, 32), method="gptq"),
    Run(name="gptq 8 bits g128", scheme=grid(8, 128), method="gptq"),
    Run(name="gptq 4 bits g128 asym", scheme=grid(4, 128, symmetric=False), method="gptq"),
    Run(name="awq 4 bits g32 asym", scheme=grid(4, 32, symmetric=False), method="awq"),
    Run(name="rtn 3 bits g32 asym", scheme=grid(3, 32, symmetric=False), method="rtn"),
    Run(name="rtn 4 bits g32, bfloat16 scales", scheme=grid(4, 32, scale_dtype="bfloat16"), method="rtn"),
    Run(name="gptq 4 bits, smooth", scheme=grid(4, 128), method="gptq", choices={"smooth": True}),
    Run(name="gptq 3 bits asym, smooth", scheme=grid(3, 32, symmetric=False), method="gptq", choices={"smooth": True}),
    Run(name="gptq 4 bits, not propagated", scheme=grid(4, 128), method="gptq", choices={"propagate": False}),
    Run(name="gptq 4 bits folded", scheme=grid(4, 128), method="gptq", arch="llama"),
    Run(name="gptq 4 bits folded, smooth", scheme=grid(4, 128), method="gptq", arch="llama", choices={"smooth": True}),
    Run(name="rtn 8 bits folded", scheme=grid(8, 32), method="rtn", arch="llama"),
    Run(
        name="rtn 4 bits folded, head of 8 bits",
        scheme=grid(4, 32),
        method="rtn",
        arch="llama",
        rules=({"role": "lm_head", "bits": 8},),
    ),
    Run(
        name="rtn 4 bits, down of 8 bits, first layer dense",
        scheme=grid(4, 32),
        method="rtn",
        rules=({"match": "model.layers.0.*", "keep": True}, {"role": "down", "bits": 8}),
    ),
)


def of_columns(bench: Workbench) -> Iterator[tuple[str, Inputs]]:
    """The artifacts that the table's faults are made from, natively and folded."""
    for arch in ("native", "llama"):
        for variant in variants(arch):
            yield from bench.against_all(str(variant), bench.honest(variant))


def of_runs(bench: Workbench) -> Iterator[tuple[str, Inputs]]:
    """Quantized folders of `RUNS`, and every container that carries their codes."""
    for run in RUNS:
        options = QuantizeOptions(
            method=run.method,
            scheme=run.scheme,
            recipe=Recipe.from_json({"rule": [dict(rule) for rule in run.rules]}) if run.rules else Recipe(),
            calibration=CALIBRATION,
            **run.choices,
        )
        folder = bench.fresh_folder()
        parent = quantize(bench.model, folder / "quantized", options, compute=Compute(threads=2), arch=run.arch).path
        yield from bench.against_all(run.name, Made(parent, None))
        yield from of_exports(bench, run.name, parent, folder)


def of_exports(bench: Workbench, name: str, parent: Path, folder: Path) -> Iterator[tuple[str, Inputs]]:
    """A quantized folder in every container that takes it, as it is and folded."""
    for container in CARRIERS:
        for arch in ("native", "llama"):
            options = ExportOptions(arch=arch, type="bf16" if container == "hf" else None)
            out = folder / NAME.format(f"{container}-{arch}")
            try:
                path = export(container, parent, out, options).path
            except UnsupportedSpec:
                continue
            yield from bench.against_all(f"{name} as {container} {arch}", Made(path, parent))


def of_conformance(bench: Workbench) -> Iterator[tuple[str, Inputs]]:
    """Every cell of the conformance matrix: quantized in memory, so without the record of a run."""
    source, folder = bench.source(), bench.fresh_folder()
    for number, (artifact, planned) in enumerate(matrix(sources(source, "gptq"))):
        if planned is not None:
            path = publish(planned, folder / NAME.format(number), inputs=source.inputs).path
            yield from bench.against_all(str(artifact), Made(path, None))


def everything(bench: Workbench) -> Iterator[tuple[str, Inputs]]:
    """All of the above."""
    yield from of_columns(bench)
    yield from of_runs(bench)
    yield from of_conformance(bench)
