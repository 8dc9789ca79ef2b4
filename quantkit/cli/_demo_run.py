"""The main job from end to end: one model, quantized once, in several forms, each proved.

checkpoint → compressed-tensors (GPTQ, 4 bits) → GGUF q4_0 with the same codes
checkpoint → GGUF f16, and a plain Llama in a Hugging Face folder
ternary checkpoint → GGUF tq2_0 with its codes
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from quantkit import (
    AffineGroups,
    Compute,
    ExportOptions,
    Published,
    QuantizeOptions,
    Report,
    engines,
    export,
    open_checkpoint,
    quantize,
    read_golden,
    verify,
)
from quantkit.errors import BadOption, MissingDependency
from quantkit.progress import Progress, StagedWork

BUNDLED = ("golden/model", "golden/golden.bin", "golden/ternary")
"""What the demo takes from a clone."""
SCHEME = AffineGroups(bits=4, group_size=128)
WORK = {
    "quantize": 70.0,
    "verify int4": 3.0,
    "write model-q4_0.gguf": 0.5,
    "verify model-q4_0.gguf": 10.0,
    "write model-f16.gguf": 0.5,
    "verify model-f16.gguf": 10.0,
    "write llama": 0.5,
    "verify llama": 3.0,
    "write ternary-tq2_0.gguf": 0.5,
    "verify ternary-tq2_0.gguf": 13.0,
}
"""What each step takes of the whole, in hundredths."""
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
    """The golden model of the clone that quantkit runs from, else of the one it is called in.

    It is 29 MB with its golden file and its ternary sister, so the wheel, 1 MB, comes without.

    Raises:
        BadOption: quantkit is installed, and this is no clone.
    """
    for root in (Path(__file__).resolve().parents[2], Path.cwd()):
        if all((root / name).exists() for name in BUNDLED):
            return root / "golden" / "model"
    raise BadOption(
        "an installed quantkit has no golden model: it is golden/model in quantkit's source repository",
        hint="run `quantkit demo` or `make demo` in a clone of that; any other model is worked on verb by verb",
    )


def run_demo(
    model: Path, golden_file: Path, out: Path, *, threads: int, overwrite: bool, tell: Tell, progress: Progress
) -> Iterator[Row]:
    """Write every artifact into `out` and yield each one's row as soon as it is proved.

    Raises:
        MissingDependency: llama.cpp or torch is not installed.
        Everything that reading, quantizing, publishing and verifying raise.
    """
    if any(engine.name == "llama-cpp" and engine.missing() for engine in engines()):
        raise MissingDependency("the demo verifies in llama.cpp", hint="pip install 'quantkit[torch,text,llama-cpp]'")
    golden = read_golden(golden_file)
    checkpoint = open_checkpoint(model)
    if not out.parent.is_dir():
        raise BadOption(f"{out.parent} is not a folder")
    out.mkdir(exist_ok=overwrite)
    weights = sum(weight.size for weight in checkpoint.weights.values())
    tell(f"quantizing {model.name} to {SCHEME} with GPTQ, on text that the model writes itself")
    work = StagedWork(progress, WORK)
    done = quantize(
        checkpoint,
        out / "int4",
        QuantizeOptions(method="gptq", scheme=SCHEME),
        compute=Compute(threads=threads),
        overwrite=overwrite,
        progress=work.stage("quantize"),
    )
    proof = work.stage("verify int4")
    report = verify(done.path, golden=golden, engine="reference", progress=proof)
    yield _row(done, "compressed-tensors int4", weights, report)
    exports = [
        ("gguf", ExportOptions(type="q4_0"), done.path, "model-q4_0.gguf", "llama-cpp"),
        ("gguf", ExportOptions(type="f16"), model, "model-f16.gguf", "llama-cpp"),
        ("hf", ExportOptions(type="bf16", arch="llama"), model, "llama", "reference"),
    ]
    for name, choices, source, target, engine in exports:
        tell(f"exporting {name} {choices.type} from {source.name}, and verifying it")
        writing, proof = work.stage(f"write {target}"), work.stage(f"verify {target}")
        done = export(name, source, out / target, choices, overwrite=overwrite, progress=writing)
        label = f"{name} {choices.type}" + (" llama" if choices.arch == "llama" else "")
        yield _row(done, label, weights, verify(done.path, golden=golden, engine=engine, progress=proof))
    ternary, target = model.parent / "ternary", "ternary-tq2_0.gguf"
    tell(f"exporting gguf tq2_0 from {ternary.name}, the same model trained to three levels, and verifying it")
    writing, proof = work.stage(f"write {target}"), work.stage(f"verify {target}")
    choices = ExportOptions(type="tq2_0")
    done = export("gguf", ternary, out / target, choices, overwrite=overwrite, progress=writing)
    yield _row(
        done, "gguf tq2_0 ternary", weights, verify(done.path, against=ternary, engine="llama-cpp", progress=proof)
    )


def _row(done: Published, name: str, weights: int, report: Report) -> Row:
    last = report.checks[-1] if report.checks else None
    return Row(
        name=name,
        size=done.size,
        bits_per_weight=done.size * 8 / weights,
        engine=report.engine or "reference",
        kl=last.kl if last is not None else math.nan,
        top1=last.top1 if last is not None else math.nan,
        passed=report.passed,
    )
