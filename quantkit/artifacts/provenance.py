"""How an artifact was made, as its manifest tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantkit.artifacts.manifest import read_manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What quantkit recorded when it wrote an artifact.

    version: of quantkit. options: of the container. method, scheme: of the run that quantized it, None for an export.
    calibration: what the run was calibrated on, None without. errors: of every quantized weight by name, over the
    calibration text, or against the weights of the original where the run had none. fallbacks: why a weight was
    rounded to nearest after all, by name.
    """

    version: str
    options: Mapping[str, Any]
    method: str | None
    scheme: Mapping[str, Any] | None
    calibration: Mapping[str, Any] | None
    errors: Mapping[str, float]
    fallbacks: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)


def provenance(path: str | Path) -> Provenance | None:
    """How the artifact at `path` was made; None where it has no manifest, so quantkit did not write it.

    Raises:
        MalformedFile, UnsafePath, ReadFailed, SourceChanged: the manifest cannot be read.
    """
    manifest = read_manifest(Path(path))
    if manifest is None:
        return None
    report = _mapping(manifest.get("report"))
    tensors = _mapping(report.get("tensors")) or _mapping(_mapping(manifest.get("weights")).get("tensors"))
    found = {name: entry for name, entry in tensors.items() if isinstance(entry, Mapping)}
    method, scheme, calibration = report.get("method"), report.get("scheme"), report.get("calibration")
    return Provenance(
        version=str(manifest.get("quantkit")),
        options=_mapping(manifest.get("options")),
        method=method if isinstance(method, str) else None,
        scheme=scheme if isinstance(scheme, Mapping) else None,
        calibration=calibration if isinstance(calibration, Mapping) else None,
        errors={name: float(x["error"]) for name, x in found.items() if isinstance(x.get("error"), (int, float))},
        fallbacks={name: x["fallback"] for name, x in found.items() if isinstance(x.get("fallback"), str)},
    )


def _mapping(value: object) -> Mapping[str, Any]:
    """`value` where it is one: the manifest may be a stranger's."""
    return value if isinstance(value, Mapping) else {}
