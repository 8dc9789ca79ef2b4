"""What the page tells of one artifact: the report on it, its size, and the errors of its layers from its manifest."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit import registry
from quantkit.artifacts.manifest import read_manifest
from quantkit.errors import QuantkitError
from quantkit.models.spec import LINEAR_ROLES
from quantkit.verification.report import Check, Report

OF_OUTPUTS, OF_WEIGHTS = "outputs on the calibration text", "weights"
"""What an error is of: ||(W - Q) X||^2 / ||W X||^2, or ||W - Q||^2 / ||W||^2."""
ORDER = {f"{role.value}_proj": place for place, role in enumerate(LINEAR_ROLES)}
_IN_A_LAYER = re.compile(r"model\.layers\.(\d+)\.(?:\w+\.)*(\w+)\.weight")


@dataclass(frozen=True, slots=True)
class LayerErrors:
    """Errors of quantized matrices: of which kind, and kind to layer to error; embedding and head are in layer -1."""

    of: str
    kinds: Mapping[str, Mapping[int, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedArtifact:
    """An artifact on a page.

    number: its place on the page, from 1, and 0 where it is alone. report: what `verify` found. size: bytes of its
    files, None where that is not known. weights: how many it has. errors: None where its manifest has none.
    """

    number: int
    report: Report
    size: int | None
    weights: int | None
    errors: LayerErrors | None

    @property
    def name(self) -> str:
        """The file's or folder's own."""
        return Path(self.report.path).name

    @property
    def original(self) -> Check | None:
        """What the engine predicts held to what the original predicts; of the reference where no engine ran."""
        found = [check for check in self.report.checks if check.name.endswith("against original")]
        return found[-1] if found else None

    @property
    def kl(self) -> float | None:
        """Mean over all positions of all prompts, in nats; None where nothing was held to the original."""
        return self.original.kl if self.original is not None else None

    @property
    def top1(self) -> float | None:
        """Share of all positions with the original's most likely token; None as for `kl`."""
        return self.original.top1 if self.original is not None else None

    @property
    def bits(self) -> float | None:
        """Bits per weight, of all files."""
        return 8 * self.size / self.weights if self.size is not None and self.weights else None


def subject(number: int, path: Path, report: Report) -> ReportedArtifact:
    """The facts of the artifact `path`; what cannot be read of it is unknown here, and told by the report."""
    manifest: Mapping[str, Any] = {}
    weights = None
    try:
        manifest = read_manifest(path) or {}
        weights = sum(weight.size for weight in registry.open_checkpoint(path).weights.values())
    except QuantkitError:
        pass
    size = sum(entry["size"] for entry in manifest["files"].values()) if "files" in manifest else None
    return ReportedArtifact(number=number, report=report, size=size, weights=weights, errors=layer_errors(manifest))


def layer_errors(manifest: Mapping[str, Any]) -> LayerErrors | None:
    """The errors that a manifest has, those of outputs where it has both."""
    for of, tensors in ((OF_OUTPUTS, _errors(manifest, "report")), (OF_WEIGHTS, _errors(manifest, "weights"))):
        kinds: dict[str, dict[int, float]] = {}
        for name, error in tensors.items():
            found = _IN_A_LAYER.fullmatch(name)
            kind, layer = (found[2], int(found[1])) if found else (name.removesuffix(".weight"), -1)
            kinds.setdefault(kind, {})[layer] = error
        if kinds:
            calibrated = of == OF_OUTPUTS and (manifest["report"].get("calibration") is not None)
            ordered = sorted(kinds.items(), key=lambda item: (ORDER.get(item[0], len(ORDER)), item[0]))
            return LayerErrors(OF_OUTPUTS if calibrated else OF_WEIGHTS, dict(ordered))
    return None


def _errors(manifest: Mapping[str, Any], part: str) -> dict[str, float]:
    """Weight to error. Strangers can write manifests: what has another shape is passed over."""
    section = manifest.get(part)
    tensors = section.get("tensors") if isinstance(section, Mapping) else None
    entries = tensors.items() if isinstance(tensors, Mapping) else ()
    found = {name: entry.get("error") for name, entry in entries if isinstance(entry, Mapping)}
    return {
        name: float(error)
        for name, error in found.items()
        if isinstance(error, int | float) and math.isfinite(error) and error >= 0
    }
