"""Does every engine compute what the artifact says, for every container, architecture and kind of weights?

    python -m benchmarks.conformance [--model DIR] [--golden FILE] [--engine NAME ...]
                                     [--only CONTAINER[:TYPE] ...] [--out FILE.md]

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

With `--out`, rows of that page which this run does not make stay, as long as the matrix has them. Each new row is
stamped with what it was made from (`benchmarks/conformance_stamps.py`, which says when a row is stale).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from benchmarks.conformance_matrix import cells, matrix, sources
from benchmarks.conformance_page import BASELINE, DENSE, STRICT, Artifact, Page, Row, baselines, problem
from benchmarks.conformance_stamps import METHOD, stamps_of
from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.errors import EngineFailed
from quantkit.models.checkpoint import Checkpoint
from quantkit.runtimes.vllm import RUNTIME as VLLM
from quantkit.text.tokenizer import open_tokenizer
from quantkit.verification.engines import ORACLE
from quantkit.verification.golden import Golden, read_golden
from quantkit.verification.prompts import default_prompts
from quantkit.verification.proof import verify
from quantkit.verification.recording import record
from quantkit.verification.report import Check, Comparison

ROOT = Path(__file__).resolve().parent.parent


def rows_of(artifact: Artifact, path: Path, golden: Golden, engines: Collection[str]) -> Iterator[Row]:
    """The rows of an artifact in those of its engines that are wanted."""
    for engine, cell in cells(artifact, registry.open_checkpoint(path)):
        if engine not in engines:
            continue
        if engine == STRICT and cell.weights != DENSE:
            yield strict_row(cell, path, golden)
            continue
        checks = verify(path, golden=golden, engine=engine).checks
        against_reference = next((check for check in checks if check.name.endswith(f"against {ORACLE}")), None)
        yield Row(artifact=cell, engine=engine, against_reference=against_reference, against_golden=checks[-1])


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


def is_wanted(artifact: Artifact, only: Collection[str] | None) -> bool:
    """Whether to run an artifact: of a container or type asked for, or a dense one that others are compared with."""
    names = {artifact.container, f"{artifact.container}:{artifact.type}"}
    is_baseline = (artifact.weights, artifact.options.type) == (DENSE, BASELINE)
    return not only or is_baseline or not names.isdisjoint(only)


def main() -> int:
    """Print the table, write it where it is wanted; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "golden" / "model")
    parser.add_argument("--golden", type=Path, default=ROOT / "golden" / "golden.bin")
    parser.add_argument("--engine", nargs="+", choices=registry.names("runtimes"), help="only these; default: all")
    parser.add_argument("--only", nargs="+", help="only these containers, or types of them: awq gguf:q4_1")
    parser.add_argument("--method", default=METHOD, help="how to quantize")
    parser.add_argument("--out", type=Path, help="Markdown file to write; rows of it that are not made anew stay")
    arguments = parser.parse_args()
    engines = arguments.engine or registry.names("runtimes")
    absent = [f"{name} is not installed: {why}" for name in engines if (why := registry.runtime(name).missing())]
    engines = [name for name in engines if registry.runtime(name).missing() is None]
    model = registry.open_checkpoint(arguments.model)
    rows: list[Row] = []
    refused: set[str] = set()
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="quantkit-conformance-") as scratch:
        golden = golden_of(model, arguments.golden, Path(scratch))
        for number, (artifact, plan) in enumerate(matrix(sources(model, arguments.method))):
            if plan is None:
                refused.add(f"{artifact.container} {artifact.type}: {artifact.weights}")
                continue
            if not is_wanted(artifact, arguments.only):
                continue
            path = publish(plan, Path(scratch) / f"{number}-gptq-marlin", inputs=model.inputs).path
            try:
                for row in rows_of(artifact, path, golden, engines):
                    rows.append(row)
                    print(f"{row.artifact!s:<66}{row.engine:<18}{row.difference:.1e}", flush=True)
            except EngineFailed as error:
                failed.append(f"{artifact}: {error}")
    stamps = stamps_of(model)
    page = Page.of(rows, sorted(refused), stamps if arguments.method == METHOD else {})
    if arguments.out is not None:
        older = Page.parsed(arguments.out.read_text(encoding="utf-8")) if arguments.out.exists() else page
        arguments.out.write_text(older.merged(page, list(stamps)).text(), encoding="utf-8")
    print(page.text())
    bases = baselines(rows)
    missed = [f"{row.engine}: {row.artifact}: {why}" for row in rows if (why := problem(row, bases))] + failed + absent
    print("\n".join(missed) if missed else "all rows pass")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
