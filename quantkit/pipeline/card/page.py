"""The model card as text: a block that hubs read, then a page for people.

Its length is planned before anything is measured, so every figure that comes later has the same width, unknown or not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from quantkit import registry
from quantkit.artifacts.file_pair import MANIFEST_NAME
from quantkit.artifacts.manifest import SIDECAR_SUFFIX
from quantkit.artifacts.output_paths import size_text
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.layouts.front_matter import front_matter_bytes
from quantkit.pipeline.card.about import About
from quantkit.protocols import Kernel
from quantkit.tensors.views import QuantizedView

FOLDER, FILE = "FOLDER", "FILE.gguf"
"""What stands for the artifact in commands: its bytes do not depend on what it is called."""
WIDTH = 8
"""Characters of a figure: "1.23e-04"."""
UNKNOWN = "-"
DENSE = "with 16 or 32 bits"
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~])")


@runtime_checkable
class Shown(Protocol):
    """A kernel that shows how its engine is started."""

    @property
    def title(self) -> str:
        """What people call the engine: "vLLM"; empty = as the kernel is called."""
        ...

    def usage(self, model: Checkpoint) -> str:
        """Lines of a shell, or of Python, that run an artifact called `FOLDER` or `FILE`; empty = there are none."""
        ...


@runtime_checkable
class OfLibrary(Protocol):
    """An exporter whose artifacts hubs file under a library."""

    library: str
    """As hubs call it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What a card is about.

    about: where the model came from, and what was measured. model: as it lies in the artifact. target: of its
    container. folder: False for a single file. size: bytes of its tensors. version: of the quantkit that wrote it.
    """

    about: About
    model: Checkpoint
    target: str | None
    folder: bool
    size: int
    version: str


def card(subject: Subject) -> str:
    """The whole card."""
    about, model = subject.about, subject.model
    name = _SPECIAL.sub(r"\\\1", about.name)
    manifest = MANIFEST_NAME if subject.folder else f"{FILE}{SIDECAR_SUFFIX}"
    lines = [
        head(subject),
        f"# {name}: {model.format}",
        "",
        f"{name} as {model.format}: {registry.exporter(model.format).summary}. Written by quantkit {subject.version}.",
        "",
        *_facts(subject),
        "",
        *_errors(about),
        "## How to run it",
        "",
        *_usages(subject),
        "## How to check it",
        "",
        f"`{manifest}` has the size and SHA-256 of every file, and a digest of the numbers of every quantized weight.",
        "This compares them with the original, and what the model predicts with what the original predicts:",
        "",
        *_fenced(f"quantkit verify {_place(subject)} --against ORIGINAL"),
    ]
    return "\n".join(lines)


def head(subject: Subject) -> str:
    """The block at the head."""
    about, model = subject.about, subject.model
    exporter = registry.exporter(model.format)
    widths = sorted({view.scheme.bits for view in model.weights.values() if isinstance(view, QuantizedView)})
    said: dict[str, str | Sequence[str] | None] = {
        "license": about.license,
        "license_name": about.license_name,
        "license_link": about.license_link,
        "language": about.language,
        "base_model": about.base_model,
        "base_model_relation": "quantized" if about.base_model else None,
        "library_name": exporter.library if isinstance(exporter, OfLibrary) else None,
        "pipeline_tag": "text-generation",
        "tags": [model.format, *(f"{bits}-bit" for bits in widths), model.spec.architecture, "quantkit"],
    }
    return front_matter_bytes({key: value for key, value in said.items() if value}).decode()


def _facts(subject: Subject) -> Iterator[str]:
    about, weights = subject.about, subject.model.weights.values()
    kinds = Counter(str(w.scheme) if isinstance(w, QuantizedView) else DENSE for w in weights)
    yield from ("| | |", "|---|---|")
    yield f"| weights | {', '.join(f'{count} tensors {kind}' for kind, count in kinds.items())} |"
    yield f"| size | {size_text(subject.size)} in {sum(weight.size for weight in weights):,} weights |"
    if about.method is not None:
        trained = f", then trained for {about.trained:,} steps" if about.trained else ""
        yield f"| method | {about.method}{', calibrated' if about.calibrated else ''}{trained} |"
    if about.calibrated and not about.trained:
        yield f"| KL of the run from the original, on its calibration text | {_figure(about.kl)} nats |"


def _errors(about: About) -> Iterator[str]:
    if not about.errors:
        return
    told = "outputs, on the calibration text" if about.calibrated else "weights"
    yield from (f"Error of each kind of matrix, squared and relative, of its {told}:", "")
    yield from ("| matrix | median | largest |", "|---|---:|---:|")
    for kind, (median, largest) in about.errors.items():
        yield f"| {kind} | {_figure(median)} | {_figure(largest)} |"
    yield ""


def _figure(value: float | None) -> str:
    text = UNKNOWN if value is None else f"{value:.2e}"
    return text.rjust(WIDTH)[:WIDTH]


def _place(subject: Subject) -> str:
    return FOLDER if subject.folder else FILE


def _usages(subject: Subject) -> Iterator[str]:
    yield from (f"`{_place(subject)}` stands for where this lies.", "")
    told: set[str] = set()
    for kernel, remark in _takers(subject):
        title, lines = (kernel.title, kernel.usage(subject.model)) if isinstance(kernel, Shown) else ("", "")
        title = title or kernel.name
        if title in told:
            continue
        told.add(title)
        yield f"{title}{f' ({remark})' if remark else ''}{':' if lines else ''}"
        yield ""
        if lines:
            yield from _fenced(lines)
    yield from ("quantkit:", "")
    yield from _fenced(f'quantkit run {_place(subject)} --prompt "..."')


def _takers(subject: Subject) -> Iterator[tuple[Kernel, str | None]]:
    """Kernels that take the artifact, with what it costs."""
    for kernel in registry.kernels(subject.model.format, subject.target):
        verdict = kernel.verdict(subject.model)
        if verdict.refusal is None:
            yield kernel, verdict.remark


def _fenced(lines: str) -> Iterator[str]:
    code = "import " in lines
    yield "```python" if code else "```console"
    yield from (line if code else f"$ {line}" for line in lines.splitlines())
    yield from ("```", "")
