"""The main job from end to end: one model, quantized once, in several forms, each proved.

checkpoint → compressed-tensors (GPTQ, 4 bits) → GGUF q4_0 with the same codes
checkpoint → GGUF f16, and a plain Llama in a Hugging Face folder
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.calibration.samples import CalibrationOptions
from quantkit.errors import BadOption
from quantkit.files.planned_files import PlannedArtifact
from quantkit.pipeline.quantization import quantized
from quantkit.protocols import ExportOptions
from quantkit.tensors.quant_spec import QuantSpec
from quantkit.verification.golden import Golden, read_golden
from quantkit.verification.proof import verify
from quantkit.verification.report import Report

SPEC = QuantSpec(bits=4, group_size=128)
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the demo's table; figures are of the last check, that of the real engine where there is one."""

    name: str
    size: int
    bits_per_weight: float
    engine: str
    kl: float
    top1: float
    passed: bool


def bundled_model() -> Path:
    """The golden model of this checkout; raises `BadOption` where quantkit is installed without one."""
    folder = Path(__file__).resolve().parents[2] / "golden" / "model"
    if not folder.is_dir():
        raise BadOption("the golden model is not part of an installed quantkit", hint="run the demo in a clone")
    return folder


def run_demo(model: Path, golden_file: Path, out: Path, *, threads: int, overwrite: bool, tell: Tell) -> Iterator[Row]:
    """Write every artifact into `out` and yield each one's row as soon as it is proved.

    Raises:
        Everything that reading, quantizing, publishing and verifying raise.
    """
    golden = read_golden(golden_file)
    checkpoint = registry.open_checkpoint(model)
    if not out.parent.is_dir():
        raise BadOption(f"{out.parent} is not a folder")
    out.mkdir(exist_ok=overwrite)
    weights = sum(weight.size for weight in checkpoint.weights.values())
    tell(f"quantizing {model.name} to {SPEC} with GPTQ, on text that the model writes itself")
    run = quantized(checkpoint, SPEC, "gptq", calibration=CalibrationOptions(), threads=threads)
    planned = registry.exporter("compressed-tensors").prepare(run.checkpoint, ExportOptions())
    folder = out / "int4"
    publish(planned, folder, inputs=checkpoint.inputs, overwrite=overwrite, report=run.report)
    yield _prove(folder, "compressed-tensors int4", planned, weights, golden, engine="reference")
    exports = [
        ("gguf", ExportOptions(type="q4_0"), folder, "model-q4_0.gguf", "llama-cpp"),
        ("gguf", ExportOptions(type="f16"), model, "model-f16.gguf", "llama-cpp"),
        ("hf", ExportOptions(type="bf16", arch="llama"), model, "llama", "reference"),
    ]
    for name, options, source, target, engine in exports:
        tell(f"exporting {name} {options.type} from {source.name}, and verifying it")
        opened = registry.open_checkpoint(source)
        planned = registry.exporter(name).prepare(opened, options)
        publish(planned, out / target, inputs=opened.inputs, overwrite=overwrite)
        label = f"{name} {options.type}" + (" llama" if options.arch == "llama" else "")
        yield _prove(out / target, label, planned, weights, golden, engine=engine)


def _prove(path: Path, name: str, planned: PlannedArtifact, weights: int, golden: Golden, *, engine: str) -> Row:
    report: Report = verify(path, golden=golden, engine=engine)
    last = report.checks[-1] if report.checks else None
    return Row(
        name=name,
        size=planned.size,
        bits_per_weight=planned.size * 8 / weights,
        engine=report.engine or "reference",
        kl=last.kl if last is not None else math.nan,
        top1=last.top1 if last is not None else math.nan,
        passed=report.passed,
    )
