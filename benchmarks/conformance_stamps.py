"""What the rows of docs/conformance.md were made from, and which of them are stale.

    python -m benchmarks.conformance_stamps                     prints the stale rows; exits with 1 if there are any
    python -m benchmarks.conformance_stamps --made-by CHECKOUT  stamps the rows that are proved to be today's

A row says that an engine computes what an artifact says. Three things decide it, and the comment at the end of the
page holds a short digest of each, for every row:

* written: the bytes of the artifact, manifest and model card aside;
* read: the values that its weights have when it is read back, which is what the reference computes with;
* driver: the code between artifact and engine, without comments, docstrings, imports and annotations. In
  `runtimes/ENGINE.py` (or `runtimes/ENGINE/runtime.py`) that is the session class, the methods that open it, and the
  constants that these name; of `runtimes/_ENGINE_server.py` and the other modules of `runtimes/ENGINE/` it is all. Of
  the reference nothing is taken: tests run it on every machine.

A refactoring that changes none of them leaves the page as true as it was. `written` and `read` are taken from stand-ins
for the artifacts of the page: the same model, grids, containers and options, but rounded to nearest, because calibrated
codes take minutes and differ from one kind of machine to another.

A page without stamps is stamped by proof: the checkout that made it quantizes as the page says, writes every stand-in,
all through its own command line, and reads it back. Rows get the digests of what it did, and none where it chose other
codes than this checkout.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import inspect
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.artifact_bytes import digests, run
from benchmarks.conformance_matrix import GRIDS, NEGATIVE, cells, in_memory, matrix, sources
from benchmarks.conformance_page import DENSE, Artifact, Key, Page, Stamp
from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.models.checkpoint import Checkpoint
from quantkit.protocols import ExportOptions
from quantkit.verification.engines import ORACLE

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "conformance.md"
MODEL = ROOT / "golden" / "model"
METHOD, STAND_IN = "gptq", "rtn"
"""What the page is made with, and what stands in for it."""
DIGITS = 12
SILENT = ("annotation", "returns", "ctx", "kind", "type_comment", "type_params")
"""Fields of syntax trees that change no result, or that only some versions of Python have."""


def stamps_of(model: Checkpoint) -> dict[tuple[str, Key], Stamp]:
    """The stamp that each row of the matrix has today, in its order. Writes and reads about a gigabyte."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="quantkit-stamps-") as scratch:
        paths = _written_sources(model, STAND_IN, Path(scratch))
        for artifact, path in _stand_ins(paths, Path(scratch)):
            checkpoint = registry.open_checkpoint(path)
            written, read = written_digest(path), values_digest(checkpoint)
            for engine, cell in cells(artifact, checkpoint):
                found[engine, cell.key] = Stamp(written, read, driver_digest(engine, ROOT))
            remove(path)
    return found


def _written_sources(model: Checkpoint, method: str, scratch: Path) -> dict[str, Path]:
    """What artifacts are exported from, by the name of the weights: folders that any checkout can read."""
    exporter = registry.exporter("compressed-tensors")
    paths = {DENSE: model.path}
    for name, source in sources(model, method).items():
        if name != DENSE:
            paths[name] = publish(exporter.prepare(source, ExportOptions()), scratch / f"source-{len(paths)}").path
    return paths


def _stand_ins(paths: Mapping[str, Path], scratch: Path) -> Iterator[tuple[Artifact, Path]]:
    """Every artifact of the matrix with its path; it must be removed before the next one is written."""
    models = {name: registry.open_checkpoint(path) for name, path in paths.items()}
    for artifact, plan in matrix({name: in_memory(model) for name, model in models.items()}):
        if plan is not None:
            yield artifact, publish(plan, scratch / "artifact-gptq-marlin").path


def remove(path: Path) -> None:
    """Delete an artifact and its manifest, if it is there."""
    if not path.exists():
        return
    for file in path.iterdir() if path.is_dir() else [path, path.with_name(f"{path.name}.quantkit.json")]:
        file.unlink()
    if path.is_dir():
        path.rmdir()


def written_digest(path: Path) -> str:
    """Of every file of an artifact but manifest and card; "refused" where nothing was written."""
    files = digests(path)
    if path.is_file():  # a single file is called as the user likes
        files = {"": files[path.name]}
    return hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:DIGITS] if files else "refused"


def values_digest(checkpoint: Any) -> str:
    """Of the float32 values of every weight."""
    import numpy  # noqa: PLC0415 - this function runs in other checkouts, too

    sha256 = hashlib.sha256()
    for name, view in sorted(checkpoint.weights.items()):
        tensor = view.read()
        values = tensor.dequantized() if hasattr(tensor, "dequantized") else tensor
        sha256.update(name.encode() + numpy.ascontiguousarray(values, numpy.float32).tobytes())
    return sha256.hexdigest()[:12]


def driver_digest(engine: str, tree: Path) -> str:
    """Of the code of the checkout `tree` between artifact and engine; "-" for the reference."""
    if engine == ORACLE:
        return "-"
    stem, room = engine.replace("-", "_"), tree / "runtimes"
    partly = [room / f"{stem}.py", room / stem / "runtime.py"]
    wholly = [room / f"_{stem}_server.py", *(file for file in room.glob(f"{stem}/*.py") if file not in partly)]
    pieces = [bare(part) for file in partly if file.exists() for part in _driving(file)]
    pieces += [bare(ast.parse(file.read_text(encoding="utf-8"))) for file in wholly if file.exists()]
    return hashlib.sha256("\n".join(sorted(pieces)).encode()).hexdigest()[:DIGITS]


def _driving(file: Path) -> list[ast.AST]:
    """The session class of a module, the methods of the runtime that open one, and the constants that these name."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    classes = [node for node in body if isinstance(node, ast.ClassDef)]
    parts: list[ast.AST] = [node for node in classes if node.name.endswith("Session")]
    for runtime in (node for node in classes if node.name.endswith("Runtime")):
        parts += [node for node in runtime.body if isinstance(node, ast.FunctionDef) and node.name.startswith("open")]
    names = {word.id for part in parts for word in ast.walk(part) if isinstance(word, ast.Name)}
    return parts + [node for node in body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in names]


def bare(node: object) -> str:
    """A syntax tree as text, the same in every version of Python, without what cannot change a result."""
    if isinstance(node, list):
        return ",".join(filter(None, map(bare, node)))
    if not isinstance(node, ast.AST):
        return "" if node is None else repr(node)
    if isinstance(node, ast.Constant):
        return repr(node.value)
    docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    if docstring or isinstance(node, ast.Import | ast.ImportFrom):
        return ""
    fields = {name: bare(value) for name, value in ast.iter_fields(node) if name not in SILENT}
    return f"{type(node).__name__}({' '.join(f'{name}=[{text}]' for name, text in fields.items() if text)})"


def stale(page: Page, today: Mapping[tuple[str, Key], Stamp]) -> list[str]:
    """One line per row that is missing, out of place, or made from something else; says what changed."""
    lines = [f"{_shown(place)}: no such row can be made" for place in page.rows if place not in today]
    for place, stamp in today.items():
        old = page.stamps.get(place)
        if place not in page.rows:
            lines.append(f"{_shown(place)}: the page has no such row")
        elif old is None:
            lines.append(f"{_shown(place)}: has no stamp")
        elif old != stamp:
            parts = ("written", "read", "driver")
            changed = [part for part in parts if getattr(old, part) != getattr(stamp, part)]
            lines.append(f"{_shown(place)}: {', '.join(changed)} changed since")
    return lines


def remedy(page: Page, today: Mapping[tuple[str, Key], Stamp]) -> str:
    """The command that makes the stale rows again, and no other than it must."""
    places = [place for place in {**page.rows, **today} if page.stamps.get(place) != today.get(place)]
    engines = " ".join(sorted({engine for engine, _ in places}))
    types = " ".join(sorted({f"{container}:{kind}" for _, (container, kind, *_) in places}))
    return f"python -m benchmarks.conformance --engine {engines} --only {types} --out docs/conformance.md"


def _shown(place: tuple[str, Key]) -> str:
    engine, (container, kind, arch, weights) = place
    return f"{engine}: {container} {kind} {arch}, {weights}"


def stamps_by(tree: Path, model: Checkpoint) -> dict[tuple[str, Key], Stamp]:
    """As `stamps_of`, but written and read by the checkout `tree`; the quantized models are written by this one."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="quantkit-stamps-") as name:
        scratch, theirs = Path(name), Path(name) / "their-artifact-gptq-marlin"
        alike = _codes_alike(tree, model, scratch)
        paths = _written_sources(model, STAND_IN, scratch)
        for artifact, ours in _stand_ins(paths, scratch):
            written, read = _export_by(tree, paths[artifact.weights], artifact, theirs), ""
            if theirs.exists():
                read = _values_read_by(tree, theirs)
                remove(theirs)
            if artifact.weights.removesuffix(NEGATIVE) in alike:
                for engine, cell in cells(artifact, registry.open_checkpoint(ours)):
                    found[engine, cell.key] = Stamp(written, read, driver_digest(engine, tree))
            remove(ours)
    return found


def _codes_alike(tree: Path, model: Checkpoint, scratch: Path) -> set[str]:
    """The weights for which the checkout `tree` chooses the codes that this one does; minutes."""
    alike = {DENSE}
    ours = _written_sources(model, METHOD, scratch)
    for name, spec in GRIDS.items():
        options = (
            "--bits",
            str(spec.bits),
            "--group-size",
            str(spec.group_size),
            *(() if spec.symmetric else ("--asym",)),
        )
        theirs = scratch / "their-codes"
        run(tree, sys.executable, "quantize", str(model.path), "--method", METHOD, "--out", str(theirs), *options)
        if written_digest(theirs) == written_digest(ours[name]):
            alike.add(name)
        remove(theirs)
    for path in ours.values():
        if path != model.path:
            remove(path)
    return alike


def _export_by(tree: Path, source: Path, artifact: Artifact, out: Path) -> str:
    """Let the checkout `tree` write an artifact; the digest of what it wrote."""
    chosen = {"--arch": artifact.options.arch, "--type": artifact.options.type, "--target": artifact.options.target}
    options = [word for option, value in chosen.items() if value is not None for word in (option, value)]
    run(tree, sys.executable, "export", artifact.container, str(source), "--out", str(out), *options)
    return written_digest(out)


def _values_read_by(tree: Path, path: Path) -> str:
    """`values_digest` of an artifact as the checkout `tree` reads it."""
    code = "\n".join(
        (
            "import hashlib, sys",
            "from pathlib import Path",
            "from typing import Any",
            "from quantkit.registry import open_checkpoint",
            inspect.getsource(values_digest),
            "print(values_digest(open_checkpoint(Path(sys.argv[1]))))",
        )
    )
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def main() -> int:
    """Say which rows are stale, or stamp those that are not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--made-by", type=Path, metavar="CHECKOUT", help="the checkout that made the page")
    arguments = parser.parse_args()
    page, model = Page.parsed(PAGE.read_text(encoding="utf-8")), registry.open_checkpoint(MODEL)
    today = stamps_of(model)
    if arguments.made_by is not None:
        then = stamps_by(arguments.made_by.resolve(), model)
        page = replace(page, stamps={place: then[place] for place in page.rows if place in then})
        PAGE.write_text(page.text(), encoding="utf-8")
    lines = stale(page, today)
    print("\n".join([*lines, "", remedy(page, today)] if lines else [f"{len(today)} rows, none is stale"]))
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
