"""Every dense member of the family in every container and engine, from tiny models of each one's own config.

    python -m benchmarks.models [--engine NAME ...] [--model NAME ...] --out docs/models.md
    python -m benchmarks.models --check        prints the rows that were made from something else; exits with 1

Each tiny model (`tests/support/family.py`) is quantized by rounding to nearest, on the grids below, written in every
container that takes the result, natively and, for engines that take no native MiniCPM, folded into a Llama, and run by
`quantkit verify` in every engine that takes the artifact. With `--engine` or `--model`, other cells and rows of the
page stay; those of an artifact that is no longer what it was lose their figures.

Rows are stamped with what they were made from, engines with the code that drives them, as the rows of
docs/conformance.md are (`benchmarks/conformance_stamps.py`).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.conformance_matrix import in_memory
from benchmarks.conformance_stamps import driver_digest, remove, values_digest, written_digest
from benchmarks.models_page import ENGINES, Cell, Key, Page, Row, merged
from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.errors import QuantkitError
from quantkit.exporters.gguf.mixture.file_types import MIXED
from quantkit.files.planned_files import PlannedArtifact
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import Role
from quantkit.pipeline.recipe import Recipe, Rule
from quantkit.protocols import ExportOptions
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.verification.engines import ORACLE
from quantkit.verification.golden import Golden
from quantkit.verification.prompts import Prompt
from quantkit.verification.proof import verify
from quantkit.verification.recording import recorded
from quantkit.verification.report import FAILED, Report
from tests.support.family import CONFIGS, write_member
from tests.support.runs import quantized

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "models.md"
LENGTHS = (17, 70)
"""Tokens of the prompts, which are random: several each, so that a prompt's own limit is measured on several."""

DENSE, SYMMETRIC, ASYMMETRIC, EIGHT, HEAD = "dense", "int4 sym", "int4 asym", "int8 sym", "int4 sym, head too"
TERNARY = "ternary"
GRIDS: Mapping[str, AffineGroups] = {
    SYMMETRIC: AffineGroups(bits=4, group_size=128),
    ASYMMETRIC: AffineGroups(bits=4, group_size=128, symmetric=False),
    EIGHT: AffineGroups(bits=8, group_size=128),
    HEAD: AffineGroups(bits=4, group_size=128),
    TERNARY: AffineGroups(bits=2, group_size=-1, ternary=True),
}
CARRIERS = {SYMMETRIC: ("q4_0",), ASYMMETRIC: ("q4_1",), EIGHT: ("q8_0",), HEAD: ("q4_0",)}
CARRIERS |= {TERNARY: ("tq2_0", "tq1_0", "q2_0")}
"""The smallest types of a GGUF file that hold a grid."""

MLX_CODES = ("affine", "affine-f16", "mxfp4", "nvfp4")
"""MLX's types of codes, of which two hold codes of their own kind alone."""

SLOW = "vllm"
"""The engine that takes a minute to start."""
RUN_IN_SLOW = (
    ("hf", "f16", "native", DENSE),
    ("gptq", "v1", "native", SYMMETRIC),
    ("awq", "gemm", "native", ASYMMETRIC),
    ("compressed-tensors", "pack-quantized", "native", SYMMETRIC),
    ("compressed-tensors", "pack-quantized", "llama", SYMMETRIC),
)
"""Rows that stand for all that its kernels and classes can tell apart; docs/conformance.md has every one."""
SPARED = "vllm: taken, and not run here: another row of this model has the same class and kernel"


def sources(model: Checkpoint) -> Iterator[tuple[str, Checkpoint]]:
    """The models that artifacts are written from, by the kind of their weights."""
    yield DENSE, model
    for name, grid in GRIDS.items():
        if name != HEAD or not model.spec.tie_word_embeddings:
            recipe = Recipe((Rule(roles=(Role.LM_HEAD,)),)) if name == HEAD else Recipe()
            yield name, quantized(model, grid, "rtn", recipe=recipe).checkpoint


def choices(container: str, weights: str, *, native: bool) -> Iterator[ExportOptions]:
    """Types, targets and architectures to try; folded is what an engine runs only so, or what is folded alone."""
    exporter = registry.exporter(container)
    offered = tuple(type_ for type_ in exporter.types if type_ not in MIXED)  # whose bytes are ggml's own, by tests
    types = offered if weights == DENSE else CARRIERS[weights] if container == "gguf" else offered[:1]
    if container == "gptq" and weights == ASYMMETRIC:
        types = exporter.types[1:]
    if weights != DENSE and container == "hf":
        return
    if container == "mlx" and weights == SYMMETRIC:
        types = MLX_CODES
    for type_ in types or (None,):
        for target in exporter.targets or (None,):
            yield ExportOptions(type=type_, target=target)
            if native and _worth_folding(container, type_, weights):
                yield ExportOptions(type=type_, target=target, arch="llama")


def _worth_folding(container: str, type_: str | None, weights: str) -> bool:
    if container == "gguf":
        return type_ in ("f16", "q4_0") and weights in (DENSE, SYMMETRIC) and (type_ == "f16") == (weights == DENSE)
    return container == "compressed-tensors" or (container == "hf" and type_ in ("f32", "bf16"))


def artifacts(
    name: str, model: Checkpoint, kinds: Collection[str] = (DENSE, *GRIDS)
) -> Iterator[tuple[Key, PlannedArtifact | str]]:
    """Every artifact of a model with these kinds of weights, and its plan, or the reason why the container refuses."""
    for weights, computed in sources(model):
        if weights not in kinds:
            continue
        source = in_memory(computed)
        for container in registry.names("exporters"):
            native = model.spec.architecture != "llama"
            for options in choices(container, weights, native=native):
                kind = " ".join(word for word in (options.type, options.target) if word) or "-"
                key = (name, container, kind, options.arch, weights)
                try:
                    yield key, registry.exporter(container).prepare(source, options)
                except QuantkitError as error:
                    yield key, _reason(error, model.path)


def rows_of(name: str, scratch: Path, engines: Collection[str], before: Mapping[Key, Row]) -> Iterator[Row]:
    """The rows of the tiny model `name`, run in those of its engines that are wanted.

    before: the rows of an earlier run.
    """
    model = opened(name, scratch)
    if isinstance(model, str):
        yield Row((name, "-", "-", "-", "-"), Cell(reason=model), Cell(), {}, "")
        return
    golden = recorded(model, prompts(model))
    number = 0
    for key, plan in artifacts(name, model):
        if isinstance(plan, str):
            if key[1] != "hf" and key[4] == DENSE and "has none" in plan:
                continue  # a container of integers says so of every dense model
            yield Row(key, Cell(reason=plan), Cell(), {}, "")
            continue
        number += 1
        out = published(plan, scratch / f"{number}-gptq-marlin", model)
        if isinstance(out, str):
            yield Row(key, Cell(reason=out), Cell(), {}, "")
            continue
        yield row_of(key, plan, out, golden, engines, before.get(key))
        remove(out)


def row_of(
    key: Key, plan: PlannedArtifact, path: Path, golden: Golden, engines: Collection[str], old: Row | None = None
) -> Row:
    """An artifact's row; what the reference says is taken from `old` where that was the same artifact, and passed."""
    artifact = registry.open_checkpoint(path)
    stamp = stamp_of(path, artifact)
    cells = {engine: engine_cell(engine, key, path, artifact, golden) for engine in engines}
    if old is not None and old.stamp == stamp and not old.kl.reason:
        return replace(old, engines=cells)
    weights = sum(weight.size for weight in artifact.weights.values())
    bits = 8 * sum(tensor.nbytes for tensor in plan.tensors) / weights
    report = verify(path, golden=golden, engine=ORACLE)
    return Row(key, Cell(f"{bits:.2f}"), _figure(report, "original", "kl", path), cells, stamp)


def engine_cell(engine: str, key: Key, path: Path, artifact: Checkpoint, golden: Golden) -> Cell:
    """What an engine makes of an artifact, or why it takes none such."""
    runtime = registry.runtime(engine)
    if artifact.format not in runtime.formats:
        return Cell()
    refusal = runtime.refuses(artifact)
    if refusal is not None:
        return Cell(reason=f"{engine}: {refusal}")
    if engine == SLOW and key[1:] not in RUN_IN_SLOW:
        return Cell(reason=SPARED)
    try:
        report = verify(path, golden=golden, engine=engine)
    except QuantkitError as error:
        return Cell(reason=_reason(error, path))
    return _figure(report, ORACLE, "max_abs_log_prob_difference", path)


def _figure(report: Report, against: str, measure: str, path: Path) -> Cell:
    """A figure of the check against `against`, and the step that fails."""
    check = next((check for check in report.checks if check.name.endswith(f"against {against}")), None)
    figure = f"{getattr(check, measure):.1e}" if check is not None else ""
    failed = next((step for step in report.steps if step.status == FAILED), None)
    reason = f"verify fails, {failed.name}: {failed.says}".replace(str(path), "the artifact") if failed else ""
    return Cell(figure, reason)


def prompts(model: Checkpoint) -> list[Prompt]:
    """Random token ids."""
    random = np.random.default_rng(0)
    return [
        Prompt(f"{length} tokens", "", tuple(map(int, random.integers(0, model.spec.vocab_size, length))))
        for length in LENGTHS
    ]


def _reason(error: QuantkitError, path: Path) -> str:
    return str(error).replace(f"{path}/", "").replace(str(path), "the model")


def drivers(engines: Sequence[str]) -> dict[str, str]:
    """Digests of the code that drives the engines."""
    return {engine: driver_digest(engine, ROOT) for engine in engines}


def stale(page: Page, today: Mapping[Key, str], driven: Mapping[str, str]) -> Iterator[str]:
    """A line for each row that would be made from something else today, that is missing, or that there is no more.

    Args:
        page: the page.
        today: stamps of all rows of some models, from `stamps_of`.
        driven: digests of the code that drives the engines.
    """
    models = {key[0] for key in today}
    found = {row.key: row.stamp for row in page.rows if row.key[0] in models and row.stamp}
    for key in {**found, **today}:
        if found.get(key) != today.get(key):
            yield f"{' '.join(key)}: {found.get(key, 'missing')} on the page, {today.get(key, 'missing')} today"
    for engine, driver in driven.items():
        if page.drivers.get(engine) != driver:
            yield f"{engine}: another driver since"


def stamps_of(names: Collection[str]) -> dict[Key, str]:
    """The stamp that each row of these models has today; writes every artifact and reads it back."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="quantkit-models-") as scratch:
        for name in names:
            model = opened(name, Path(scratch))
            for key, plan in artifacts(name, model) if isinstance(model, Checkpoint) else ():
                path = plan if isinstance(plan, str) else published(plan, Path(scratch) / f"{name}-gptq-marlin", model)
                if not isinstance(path, str):
                    found[key] = stamp_of(path, registry.open_checkpoint(path))
                    remove(path)
    return found


def published(plan: PlannedArtifact, out: Path, model: Checkpoint) -> Path | str:
    """Where the artifact lies, or why it was refused while it was written: not every matrix is ternary."""
    try:
        return publish(plan, out).path
    except QuantkitError as error:
        return _reason(error, model.path)


def opened(name: str, scratch: Path) -> Checkpoint | str:
    """The tiny model `name`, or why it is refused."""
    path = write_member(scratch / name, name)
    try:
        return registry.open_checkpoint(path)
    except QuantkitError as error:
        return _reason(error, path)


def stamp_of(path: Path, artifact: Checkpoint) -> str:
    """Digests of what an artifact is, and of what is read of it."""
    return f"{written_digest(path)} {values_digest(artifact)}"


def main() -> int:
    """Make rows, or check them; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engine", nargs="*", choices=ENGINES, default=list(ENGINES), help="only these")
    parser.add_argument("--model", nargs="+", choices=tuple(CONFIGS), default=list(CONFIGS), help="only these")
    parser.add_argument("--out", type=Path, help="the page to write")
    parser.add_argument("--check", action="store_true", help="only say which rows are stale")
    arguments = parser.parse_args()
    if arguments.check:
        page, today = Page.parsed(PAGE.read_text(encoding="utf-8")), stamps_of(arguments.model)
        lines = list(stale(page, today, drivers(ENGINES)))
        print("\n".join(lines) if lines else "no row is stale")
        return 1 if lines else 0
    engines = [engine for engine in arguments.engine if registry.runtime(engine).missing() is None]
    page = Page(())
    if arguments.out is not None and arguments.out.exists():
        page = Page.parsed(arguments.out.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="quantkit-models-") as scratch:
        for name in arguments.model:
            rows: list[Row] = []
            for row in rows_of(name, Path(scratch), engines, {row.key: row for row in page.rows}):
                rows.append(row)
                shown = (f"{cell.figure} {cell.reason[:60]}" for cell in (row.bits, row.kl, *row.engines.values()))
                print(*row.key, *shown, sep=" | ", flush=True)
            page = merged(page, Page(tuple(rows), drivers(engines)), engines, list(CONFIGS))
            if arguments.out is not None:  # after every model, as all of them take an hour
                arguments.out.write_text(page.text(), encoding="utf-8")
    absent = [engine for engine in arguments.engine if engine not in engines]
    print(f"not installed: {', '.join(absent)}" if absent else "every engine ran")
    return 1 if absent else 0


if __name__ == "__main__":
    sys.exit(main())
