"""The rows of `benchmarks/int4_quality.py`: every way to make a quantized model that is compared there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import gptqmodel_runs
from benchmarks.child import measured
from benchmarks.first_quality import ours, textbook
from quantkit import registry
from quantkit.calibration.compute import Compute
from quantkit.calibration.samples import CalibrationFile, CalibrationOptions, Samples
from quantkit.methods.gptq import USUAL, Gptq
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.loading import load_model
from quantkit.models.torch_model import MiniCPM
from quantkit.pipeline.options import QuantizeOptions
from quantkit.pipeline.quantization import Quantization
from quantkit.protocols import Method
from quantkit.solver.stages import Stages
from quantkit.tensors.scheme import Scheme
from quantkit.tensors.schemes.affine_groups import AffineGroups

RTN, TEXTBOOK = "rtn", "textbook"
DEFAULT = "default"
"""`quantkit quantize` by itself: on text that the model writes."""
WITH_FILE = "default + file"
"""`quantkit quantize --calibration FILE`: own text joins the file."""
FILE_ALONE = "file alone"
"""`quantkit quantize --calibration FILE --only-files`, and the last of our stages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One of our rows on the file alone."""

    name: str
    method: Method
    skip_positions: int = CalibrationOptions().skip_positions
    propagate: bool = True
    fisher: bool = False
    smooth: bool | None = None


FEEDBACK = Gptq(Stages(search=False, act_order=False, rounds=0, damping=0.01))
STAGES = (
    Stage(name="ours: feedback", method=FEEDBACK, skip_positions=0, propagate=False),
    Stage(name="ours: + P-GPTQ", method=FEEDBACK, propagate=False),
    Stage(name="ours: + act-order", method=Gptq(Stages(search=False, rounds=0, damping=0.01)), propagate=False),
    Stage(name="ours: + search", method=Gptq(Stages(rounds=0, damping=0.01)), propagate=False),
    Stage(name="ours: + refine", method=Gptq(Stages(damping=0.01)), propagate=False),
    Stage(name="ours: + damping", method=Gptq(), propagate=False),
    Stage(name="ours: + rounds", method=Gptq(USUAL), propagate=False),
    Stage(name="ours: + propagation", method=Gptq(USUAL)),
    Stage(name=FILE_ALONE, method=registry.method("gptq"), fisher=True),
    Stage(name="ours: + smoothing", method=registry.method("gptq"), fisher=True, smooth=True),
    Stage(name="ours: awq", method=registry.method("awq")),
)
WITHOUT = (
    Stage(name="less P-GPTQ", method=Gptq(USUAL), skip_positions=0, fisher=True),
    Stage(name="less act-order", method=Gptq(replace(USUAL, act_order=False)), fisher=True),
    Stage(name="less search", method=Gptq(replace(USUAL, search=False)), fisher=True),
    Stage(name="less refine", method=Gptq(replace(USUAL, rounds=0)), fisher=True),
    Stage(name="less damping", method=Gptq(replace(USUAL, damping=0.01)), fisher=True),
    Stage(name="less propagation", method=Gptq(USUAL), propagate=False, fisher=True),
)
OURS = (*STAGES, *WITHOUT)
NAMES = (RTN, TEXTBOOK, *(stage.name for stage in OURS), DEFAULT, WITH_FILE, *gptqmodel_runs.OPTIONS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all rows share.

    file: calibration text. samples: sequences of it alone. rows: by kind of text, int64 [1, tokens] each, held out.
    options: how many sequences each row is calibrated on, and of how many tokens.
    folder: for what GPTQModel reads and writes.
    """

    checkpoint: Checkpoint
    file: Path
    samples: Samples
    rows: Mapping[str, Sequence[torch.Tensor]]
    options: CalibrationOptions
    group_size: int
    threads: int
    gptqmodel: Path | None
    folder: Path


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """A quantized model, and what its maker says about itself."""

    model: MiniCPM
    notes: Mapping[str, Any]


def makers(setting: Setting, bits: int) -> Iterator[tuple[str, Callable[[], Made]]]:
    """Every row that can be made here, by name, in the order of NAMES."""
    yield RTN, partial(by_stage, setting, bits, Stage(name=RTN, method=registry.method("rtn")))
    yield TEXTBOOK, lambda: Made(textbook(setting.checkpoint, bits, setting.samples, setting.group_size), {})
    for stage in OURS:
        yield stage.name, partial(by_stage, setting, bits, stage)
    yield DEFAULT, partial(by_default, setting, bits, setting.options)
    joined = replace(setting.options, files=(CalibrationFile(path=setting.file),))
    yield WITH_FILE, partial(by_default, setting, bits, joined)
    if setting.gptqmodel is not None:
        for name in gptqmodel_runs.OPTIONS:
            yield name, partial(by_gptqmodel, setting, bits, name)


def by_stage(setting: Setting, bits: int, stage: Stage) -> Made:
    """The model by our code, on the file alone."""
    options = QuantizeOptions(
        method=stage.method,
        scheme=AffineGroups(bits=bits, group_size=setting.group_size),
        calibration=replace(setting.options, skip_positions=stage.skip_positions),
        propagate=stage.propagate,
        fisher=stage.fisher,
        smooth=stage.smooth,
    )
    return _by_run(setting, options, setting.samples)


def by_default(setting: Setting, bits: int, calibration: CalibrationOptions) -> Made:
    """The model as a whole run makes it, own text included."""
    return by_scheme(setting, "gptq", AffineGroups(bits=bits, group_size=setting.group_size), calibration)


def by_scheme(setting: Setting, method: str, scheme: Scheme, calibration: CalibrationOptions) -> Made:
    """The same by any method, on any scheme."""
    return _by_run(setting, QuantizeOptions(method=method, scheme=scheme, calibration=calibration), None)


def _by_run(setting: Setting, options: QuantizeOptions, samples: Samples | None) -> Made:
    run = Quantization(setting.checkpoint, options, compute=Compute(threads=setting.threads), samples=samples)
    model = ours(setting.checkpoint, run)
    report = run.report()
    fallbacks = [name for name, tensor in report["tensors"].items() if tensor["fallback"]]
    return Made(model, {"fallbacks": fallbacks, "calibration": report["calibration"]})


def by_gptqmodel(setting: Setting, bits: int, name: str) -> Made:
    """The model by GPTQModel on the file alone, read by our reader from what it wrote."""
    folded, tokens = setting.folder / "llama", setting.folder / "tokens.json"
    out = setting.folder / f"{bits} {name}".replace(" ", "-").replace(":", "")
    if not folded.exists():
        gptqmodel_runs.write_folded(setting.checkpoint, folded)
        gptqmodel_runs.write_tokens(setting.samples.sequences, tokens)
    command = gptqmodel_runs.command(
        setting.gptqmodel or Path(),
        folded,
        tokens,
        out,
        bits=bits,
        group_size=setting.group_size,
        options=gptqmodel_runs.OPTIONS[name],
    )
    measured(command)
    return Made(load_model(registry.open_checkpoint(out)), gptqmodel_runs.used_settings(out))
