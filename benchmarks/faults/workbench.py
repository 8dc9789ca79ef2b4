"""Making artifacts: the honest ones, once, and wrong ones beside them, by the same code that users run."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.faults.fault import CONTAINERS, Fault, Inputs, Level, NotApplicable, Proof, Refused, Trial, Way
from quantkit import registry
from quantkit.artifacts.manifest import MANIFEST_NAME, manifest_path
from quantkit.artifacts.publishing import publish, source_digest
from quantkit.errors import QuantkitError
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.folding import with_architecture, with_source_dtypes
from quantkit.pipeline.options import QuantizeOptions
from quantkit.pipeline.quantization import Quantization
from quantkit.protocols import ExportOptions
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView
from quantkit.verification.golden import Golden, read_golden
from quantkit.verification.recording import record

CodeChange = Callable[[QuantizedTensor], QuantizedTensor]


@dataclass(frozen=True, slots=True)
class Variant:
    """A column of the table: what the weights become, and what they lie in. grid None = dense float16."""

    name: str
    grid: AffineGroups | None
    container: str
    arch: str = "native"
    method: str = "rtn"

    def __str__(self) -> str:
        folded = f" {self.arch}" if self.arch != "native" else ""
        return f"{self.name} {self.container}{folded}"


def grid(bits: int, *, symmetric: bool = True) -> AffineGroups:
    """Groups of 32, which both containers hold."""
    return AffineGroups(bits=bits, group_size=32, symmetric=symmetric)


GRIDS: Mapping[str, AffineGroups | None] = {
    "f16": None,
    "int8": grid(8),
    "int4": grid(4),
    "int4 asym": grid(4, symmetric=False),
    "int3": grid(3),
    "ternary": AffineGroups(bits=2, group_size=64, ternary=True),
}


def variants(arch: str = "native") -> tuple[Variant, ...]:
    """Every kind of weights in both containers."""
    return tuple(Variant(name, weights, container, arch) for name, weights in GRIDS.items() for container in CONTAINERS)


@dataclass(frozen=True, slots=True)
class Made:
    """An artifact, and the quantized folder that it was exported from (None where it is that folder, or dense)."""

    path: Path
    parent: Path | None


@dataclass(slots=True)
class Workbench:
    """A model, its golden file, a folder to work in, and the honest artifacts that have been made."""

    model: Path
    golden: Path
    scratch: Path
    artifacts: dict[Variant, Made] = field(default_factory=dict)
    recorded: dict[Path, Golden] = field(default_factory=dict)

    def source(self) -> Checkpoint:
        """The original."""
        return registry.open_checkpoint(self.model)

    def golden_of(self, path: Path) -> Golden:
        """A golden file's content, read once."""
        if path not in self.recorded:
            self.recorded[path] = read_golden(path)
        return self.recorded[path]

    def record(self, model: Path, name: str) -> Path:
        """A golden file of any model on the prompts of the honest one; the same file for the same name."""
        out = self.scratch / f"{name}.golden"
        if not out.exists():
            checkpoint = registry.open_checkpoint(model)
            publish(record(checkpoint, self.golden_of(self.golden).prompts), out, inputs=checkpoint.inputs)
        return out

    def fresh_folder(self) -> Path:
        """An empty folder that nobody has used."""
        return Path(tempfile.mkdtemp(dir=self.scratch))

    def honest(self, variant: Variant) -> Made:
        """The artifact that nothing is wrong with."""
        if variant not in self.artifacts:
            self.artifacts[variant] = make(self.source(), variant, self.fresh_folder())
        return self.artifacts[variant]

    def wrong(self, fault: Fault, variant: Variant) -> Iterator[tuple[Trial, Inputs | Refused | None]]:
        """What to verify in every trial of this fault; None where the change changed nothing.

        Raises:
            NotApplicable: the fault makes no sense for this variant.
        """
        if variant.container not in fault.containers:
            raise NotApplicable(f"{fault.containers[0]} only")
        if fault.level is Level.INPUTS:
            yield from ((trial, fault.change(self, variant)) for trial in fault.trials)
            return
        honest, folder = self.honest(variant), self.fresh_folder()
        if fault.level is Level.ENGINE:
            try:
                wrong = make(fault.change(self.source()), variant, folder).path
            except QuantkitError as error:
                yield from ((trial, Refused(str(error))) for trial in fault.trials)
                return
            yield from ((t, Inputs(honest.path, golden=self.golden, engine_reads=wrong)) for t in fault.trials)
            return
        made: dict[Way, Path | Refused] = {}
        trials = [trial for trial in fault.trials if variant.container in trial.containers]
        for trial in sorted(trials, key=lambda trial: trial.way is Way.SIGNED):
            if trial.way not in made:
                made[trial.way] = self._tried(fault, variant, trial.way, folder, made.get(Way.WRITTEN))
            path = made[trial.way]
            if isinstance(path, Refused):
                yield trial, path
            elif trial.proof is not Proof.PARENT or honest.parent is not None:
                same = unchanged(fault, path, honest.path)
                yield trial, None if same else self.inputs(trial.proof, path, honest.parent)
        shutil.rmtree(folder)

    def against_all(self, name: str, made: Made) -> Iterator[tuple[str, Inputs]]:
        """An artifact with everything that it may be compared with."""
        for proof in Proof:
            if proof is not Proof.PARENT or made.parent is not None:
                yield f"{name}, against the {proof.value}", self.inputs(proof, made.path, made.parent)

    def inputs(self, proof: Proof, path: Path, parent: Path | None) -> Inputs:
        """What an artifact is compared with."""
        if proof is Proof.GOLDEN:
            return Inputs(path, golden=self.golden)
        return Inputs(path, against=self.model if proof is Proof.ORIGINAL else parent)

    def _tried(
        self, fault: Fault, variant: Variant, way: Way, folder: Path, written: Path | Refused | None
    ) -> Path | Refused:
        """The wrong artifact, or why nobody writes it."""
        if isinstance(written, Refused) and way is Way.SIGNED:
            return written
        try:
            return self._in_way(fault, variant, way, folder, written if isinstance(written, Path) else None)
        except QuantkitError as error:
            return Refused(str(error))

    def _in_way(self, fault: Fault, variant: Variant, way: Way, folder: Path, written: Path | None) -> Path:
        """The wrong artifact; SIGNED takes the files that a wrong writer has `written`, where there are any."""
        honest, inside = self.honest(variant), folder / way.value
        inside.mkdir()
        if way is Way.SIGNED or fault.level is Level.BYTES:
            path = copy(written or honest.path, inside / honest.path.name)
            if written is None:
                fault.change(path)
            if way is Way.SIGNED:
                sign(path, honest.path)
            return path
        if fault.level is Level.CODES:
            if variant.grid is None:
                raise NotApplicable("no codes")
            return make(self.source(), variant, inside, codes={fault.tensor: fault.change}).path
        wrong = fault.change(self.source())
        return make(self._on_disk(wrong, folder / "source") if way is Way.CONVERTED else wrong, variant, inside).path

    def _on_disk(self, wrong: Checkpoint, folder: Path) -> Checkpoint:
        """The wrong model as a Hugging Face folder without any manifest, opened."""
        publish(registry.exporter("hf").prepare(wrong, ExportOptions()), folder, inputs=wrong.inputs)
        manifest_path(folder).unlink()
        return registry.open_checkpoint(folder)


def make(source: Checkpoint, variant: Variant, folder: Path, codes: Mapping[str, CodeChange] | None = None) -> Made:
    """Quantize where the variant asks for it, and export; `codes` are changed between the two."""
    if variant.grid is None:
        container = "hf" if variant.container == "folder" else "gguf"
        return Made(_exported(source, container, ExportOptions(type="f16", arch=variant.arch), folder), None)
    parent = _quantized(source, variant, folder, codes or {})
    if variant.container == "folder":
        return Made(parent, None)
    return Made(_exported(registry.open_checkpoint(parent), "gguf", ExportOptions(), folder), parent)


def _quantized(source: Checkpoint, variant: Variant, folder: Path, codes: Mapping[str, CodeChange]) -> Path:
    assert variant.grid is not None
    options = QuantizeOptions(method=variant.method, scheme=variant.grid)
    run = Quantization(with_architecture(source, variant.arch), options)
    model = with_changed_codes(with_source_dtypes(run.checkpoint, source), codes)
    planned = registry.exporter("compressed-tensors").prepare(model, ExportOptions())
    return publish(planned, folder / "quantized", inputs=source.inputs, report=run.report).path


def with_changed_codes(model: Checkpoint, changes: Mapping[str, CodeChange]) -> Checkpoint:
    """`model` with some quantized tensors changed when they are read."""
    weights = dict(model.weights)
    for name, change in changes.items():
        view = weights[name]
        assert isinstance(view, QuantizedView)
        weights[name] = replace(view, read=_changed_read(view, change))
    return replace(model, weights=weights)


def _changed_read(view: QuantizedView, change: CodeChange) -> Callable[[], QuantizedTensor]:
    return lambda: change(view.read())


def _exported(model: Checkpoint, container: str, options: ExportOptions, folder: Path) -> Path:
    planned = registry.exporter(container).prepare(model, options)
    return publish(planned, folder / f"{container}{'' if planned.folder else '.gguf'}", inputs=model.inputs).path


def copy(path: Path, to: Path) -> Path:
    """A copy of an artifact, manifest and all."""
    if path.is_dir():
        shutil.copytree(path, to)
    else:
        shutil.copy(path, to)
        shutil.copy(manifest_path(path), manifest_path(to))
    return to


def sign(path: Path, honest: Path) -> None:
    """Give `path` the honest artifact's manifest, with the sizes and SHA-256 of the files that are there."""
    manifest = json.loads(manifest_path(honest).read_bytes())
    present = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.name != MANIFEST_NAME)
    names = list(manifest["files"]) if path.is_file() else [p.name for p in present]
    entries: dict[str, Any] = {}
    for name, digest in zip(names, source_digest(present), strict=True):
        entries[name] = {"size": digest["size"], "sha256": digest["sha256"]}
    manifest_path(path).write_text(json.dumps({**manifest, "files": entries}, sort_keys=True, indent=1) + "\n")


def unchanged(fault: Fault, path: Path, honest: Path) -> bool:
    """Whether the fault left every file as it was; the manifest counts only where it may have been the aim."""
    if not path.exists() or content(path) != content(honest):
        return False
    return fault.level is not Level.BYTES or _manifest(path) == _manifest(honest)


def content(path: Path) -> dict[str, bytes]:
    """Every file of an artifact but its manifest."""
    if path.is_file():
        return {"": path.read_bytes()}
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name != MANIFEST_NAME}


def _manifest(path: Path) -> bytes | None:
    file = manifest_path(path)
    return file.read_bytes() if file.exists() else None
