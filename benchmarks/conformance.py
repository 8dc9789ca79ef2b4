"""Does every engine compute what the artifact says, for every container, architecture and kind of weights?

    python -m benchmarks.conformance [--model DIR] [--golden FILE] [--engine NAME ...] [--out FILE.md]

The model is quantized once per grid; every container that takes the result is written, natively and folded into a
Llama, and every engine that takes the artifact runs all golden prompts. A row says how far the engine lies from the
reference runtime on the same artifact (largest difference of a log-probability, KL, top-1), and from the recorded
logits of the original. Rows with negative scales hold the same weights written otherwise: in every second group that
allows it scale and codes are mirrored, which an engine that takes scales for positive would turn upside down. (GPTQ
chooses scales of both signs for symmetric grids by itself.)

A row passes as `quantkit verify` judges it: KL (quantized) or the largest difference (dense) within the limits that
are written there. vLLM computes quantized weights in float16, which moves log-probabilities by itself: there a row
passes within twice what the dense float16 model shows when vLLM computes that in float16, too, with the reference's
next token after every prompt, and inside the prompts wherever its lead is more than the dense model differs: below that
the dense float16 model chooses otherwise, too. Exits with 1 when a row fails or an engine is not installed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.conformance_page import BASELINE, COMPUTED, DENSE, STRICT, Artifact, Row, baselines, page, problem
from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.calibration.samples import CalibrationOptions
from quantkit.errors import EngineFailed, UnsupportedSpec
from quantkit.files.planned_files import PlannedArtifact
from quantkit.models.checkpoint import Checkpoint
from quantkit.protocols import Exporter, ExportOptions
from quantkit.runtimes.vllm import RUNTIME as VLLM
from quantkit.tensors.cast import FLOATS
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView, Weight
from quantkit.text.tokenizer import open_tokenizer
from quantkit.verification.engines import ORACLE, runs
from quantkit.verification.golden import Golden, read_golden
from quantkit.verification.prompts import default_prompts
from quantkit.verification.proof import verify
from quantkit.verification.recording import record
from quantkit.verification.report import Check, Comparison
from tests.support.runs import quantized

ROOT = Path(__file__).resolve().parent.parent
GRIDS = {
    "int4 sym": AffineGroups(bits=4, group_size=128),
    "int4 asym": AffineGroups(bits=4, group_size=128, symmetric=False),
}
NEGATIVE = ", negative scales"
ARCHITECTURES = ("native", "llama")
WIDER = (*FLOATS, "q8_0", "q5_0", "q5_1")
"""Types that hold 4-bit codes in more than 4 bits."""


def sources(model: Checkpoint, method: str) -> dict[str, Checkpoint]:
    """The models that artifacts are written from, quantized ones in memory: every container gets the same codes."""
    found = {DENSE: model}
    for name, grid in GRIDS.items():
        run = quantized(model, grid, method, calibration=CalibrationOptions())
        found[name] = in_memory(run.checkpoint)
        found[name + NEGATIVE] = mirrored(found[name])
    return found


def in_memory(model: Checkpoint) -> Checkpoint:
    """`model` with every quantized weight computed, once."""
    weights = {
        name: view_of(name, weight.read()) if isinstance(weight, QuantizedView) else weight
        for name, weight in model.weights.items()
    }
    return replace(model, weights=weights)


def view_of(name: str, tensor: QuantizedTensor) -> QuantizedView:
    """A view of a tensor that is in memory."""
    return QuantizedView(name, tensor.shape, tensor.scheme, lambda: tensor)


def mirrored(model: Checkpoint) -> Checkpoint:
    """The same weights, half of the groups written with a negative scale: s (q - z) = -s (q' - z')."""
    weights: dict[str, Weight] = dict(model.weights)
    for name, weight in model.weights.items():
        if isinstance(weight, QuantizedView):
            weights[name] = view_of(name, mirrored_tensor(weight.read()))
    return replace(model, weights=weights)


def mirrored_tensor(tensor: QuantizedTensor) -> QuantizedTensor:
    """q' = 2 z - q where the zero point z is fixed, which code 0 has no room for; else q' = 15 - q, z' = 15 - z."""
    spec, (rows, groups) = tensor.scheme, tensor.scale.shape
    codes, zero = tensor.codes.reshape(rows, groups, -1), tensor.zero[:, :, None]
    top = 2 * spec.midpoint if spec.symmetric else spec.levels - 1
    chosen = np.add.outer(np.arange(rows), np.arange(groups))[:, :, None] % 2 == 1
    if spec.symmetric:
        chosen &= codes.min(axis=-1, keepdims=True) > 0
    turned = QuantizedTensor(
        spec,
        np.where(chosen, top - codes.astype(int), codes).astype(np.uint8).reshape(tensor.codes.shape),
        {
            "scale": np.where(chosen[:, :, 0], -tensor.scale, tensor.scale),
            "zero": np.where(chosen, top - zero.astype(int), zero).astype(np.uint8)[:, :, 0],
        },
    )
    assert (turned.scale < 0).any()
    assert np.array_equal(turned.dequantized(), tensor.dequantized())
    return turned


def matrix(models: Mapping[str, Checkpoint]) -> Iterator[tuple[Artifact, PlannedArtifact | None]]:
    """Every cell with its plan; None where the container does not hold such weights."""
    for container in registry.names("exporters"):
        exporter = registry.exporter(container)
        for weights, model in models.items():
            for options in choices(exporter, weights):
                artifact = Artifact(container=container, options=options, weights=weights)
                yield artifact, planned(exporter, model, artifact)


def choices(exporter: Exporter, weights: str) -> Iterator[ExportOptions]:
    """Types, targets and architectures to try, less those that say nothing new: types wider than the codes with
    quantized weights, and folded what quantizes by itself or has mirrored scales."""
    for type_ in exporter.types or (None,):
        for target in exporter.targets or (None,):
            for arch in ARCHITECTURES:
                folded_again = weights.endswith(NEGATIVE) or (weights == DENSE and type_ not in FLOATS)
                if (weights == DENSE or type_ not in WIDER) and not (folded_again and arch != "native"):
                    yield ExportOptions(type=type_, target=target, arch=arch)


def planned(exporter: Exporter, model: Checkpoint, artifact: Artifact) -> PlannedArtifact | None:
    """The plan, or None when the container refuses."""
    try:
        for weight in model.weights.values():
            if isinstance(weight, QuantizedView):
                exporter.accepts(weight.scheme, artifact.options)
        return exporter.prepare(model, artifact.options)
    except UnsupportedSpec:
        return None


def rows_of(artifact: Artifact, path: Path, golden: Golden, engines: Sequence[str]) -> Iterator[Row]:
    """The artifact in every engine that takes it; in the reference alone where none does."""
    checkpoint = registry.open_checkpoint(path)
    dense = artifact.weights == DENSE
    taking = [name for name in engines if runs(registry.runtime(name), checkpoint)]
    for engine in taking or [ORACLE]:
        if engine == STRICT and not dense:
            yield strict_row(artifact, path, golden)
            continue
        if engine == STRICT and artifact.options.type != BASELINE:
            continue  # all dense types are computed in float32
        checks = verify(path, golden=golden, engine=engine).checks
        against_reference = next((check for check in checks if check.name.endswith(f"against {ORACLE}")), None)
        yield Row(artifact=artifact, engine=engine, against_reference=against_reference, against_golden=checks[-1])
    if STRICT in taking and dense and artifact.options.type == BASELINE:
        yield strict_row(replace(artifact, weights=COMPUTED), path, golden)


def strict_row(artifact: Artifact, path: Path, golden: Golden) -> Row:
    """The artifact in the strict engine, computed in float16; its limits follow from the baseline's row."""
    ids, names = zip(*((prompt.token_ids, prompt.name) for prompt in golden.prompts), strict=True)
    with registry.runtime(ORACLE).open(path) as oracle:
        reference = [oracle.logits(tokens) for tokens in ids]
    with VLLM.open_in(path, "float16") as session:
        logits = [session.logits(tokens) for tokens in ids]
    checks = [
        Check(f"{STRICT} against {name}", "kl", np.inf, tuple(map(Comparison.of, names, trusted, logits)))
        for name, trusted in ((ORACLE, reference), ("original", golden.logits))
    ]
    return Row(artifact=artifact, engine=STRICT, against_reference=checks[0], against_golden=checks[1])


def golden_of(model: Checkpoint, file: Path, folder: Path) -> Golden:
    """The recorded logits in `file`, or recorded now where there is none."""
    if not file.exists():
        prompts = default_prompts(open_tokenizer(model), max_tokens=model.spec.max_position_embeddings)
        file = publish(record(model, prompts), folder / "golden.bin", inputs=model.inputs).path
    return read_golden(file)


def main() -> int:
    """Print the table, write it where it is wanted; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "golden" / "model")
    parser.add_argument("--golden", type=Path, default=ROOT / "golden" / "golden.bin")
    parser.add_argument("--engine", nargs="+", help="only these; default: all")
    parser.add_argument("--method", default="gptq", help="how to quantize")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    arguments = parser.parse_args()
    engines = arguments.engine or [name for name in registry.names("runtimes") if name != ORACLE]
    absent = [f"{name} is not installed: {why}" for name in engines if (why := registry.runtime(name).missing())]
    engines = [name for name in engines if registry.runtime(name).missing() is None]
    model = registry.open_checkpoint(arguments.model)
    rows: list[Row] = []
    refused: list[str] = []
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="quantkit-conformance-") as scratch:
        golden = golden_of(model, arguments.golden, Path(scratch))
        for number, (artifact, plan) in enumerate(matrix(sources(model, arguments.method))):
            if plan is None:
                refused.append(f"{artifact.container} {artifact.type}: {artifact.weights}")
                continue
            path = publish(plan, Path(scratch) / f"{number}-gptq-marlin", inputs=model.inputs).path
            try:
                for row in rows_of(artifact, path, golden, engines):
                    rows.append(row)
                    print(f"{artifact!s:<66}{row.engine:<14}{row.difference:.1e}", flush=True)
            except EngineFailed as error:
                failed.append(f"{artifact}: {error}")
    text = page(rows, sorted(set(refused)))
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text, encoding="utf-8")
    bases = baselines(rows)
    missed = [f"{row.engine}: {row.artifact}: {why}" for row in rows if (why := problem(row, bases))] + failed + absent
    print("\n".join(missed) if missed else "all rows pass")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
