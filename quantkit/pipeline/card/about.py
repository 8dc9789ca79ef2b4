"""What a model card tells of a model: where it came from, under which licence, what was done and what that cost.

It stands in the manifest of every artifact under `ABOUT`, and what is exported from an artifact takes it over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from statistics import fmean, median
from typing import Any

ABOUT = "about"
"""The manifest's key."""
Error = tuple[float | None, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """Facts of one model; None and empty = not known, or not done.

    name: what the original is called. base_model: OWNER/NAME of it on a hub. license, license_name, license_link,
    language: as hubs write them. method: what chose the codes. calibrated: whether inputs were looked at.
    trained: steps of training afterwards. kl: in nats, mean over the calibration text. errors: median and largest
    error of the matrices of each kind ("q_proj"), see `quantkit.protocols.TensorReport`.
    """

    name: str
    base_model: str | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    language: tuple[str, ...] = ()
    method: str | None = None
    calibrated: bool = False
    trained: int | None = None
    kl: float | None = None
    errors: Mapping[str, Error] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For the manifest, which sorts keys: errors are a list, in the order of the model."""
        errors = [{"matrix": kind, "median": low, "largest": high} for kind, (low, high) in self.errors.items()]
        return {**asdict(self), "errors": errors}

    @classmethod
    def from_json(cls, data: object) -> About | None:
        """What a manifest says, None where it says nothing that can be used: strangers can write manifests, too."""
        if not isinstance(data, Mapping) or not isinstance(data.get("name"), str) or not data["name"]:
            return None
        texts = {name: data.get(name) for name in TEXTS}
        language, errors = data.get("language"), data.get("errors")
        return cls(
            **{name: value for name, value in texts.items() if isinstance(value, str)},
            language=tuple(map(str, language)) if isinstance(language, list) else (),
            calibrated=data.get("calibrated") is True,
            trained=data["trained"] if type(data.get("trained")) is int else None,
            kl=_number(data.get("kl")),
            errors=dict(map(_error, filter(_is_error, errors if isinstance(errors, list) else ()))),
        )

    def measured(self, report: Mapping[str, Any]) -> About:
        """With the figures that a run reports (`Quantization.report`)."""
        kinds: dict[str, list[float]] = {}
        for name, tensor in report["tensors"].items():
            kinds.setdefault(matrix_kind(name), []).append(tensor["error"])
        sources = (report["calibration"] or {}).get("sources", [])
        known = [source["kl"] for source in sources if source["kl"] is not None]
        return replace(
            self,
            kl=fmean(known) if known else None,
            errors={**self.errors, **{kind: (median(found), max(found)) for kind, found in kinds.items()}},
        )


TEXTS = tuple(one.name for one in fields(About) if one.type in ("str", "str | None"))


def matrix_kind(name: str) -> str:
    """What kind of matrix a weight is: "q_proj", "lm_head"."""
    return name.removesuffix(".weight").rpartition(".")[2]


def awaited(names: Sequence[str]) -> dict[str, Error]:
    """The errors of these weights, by kind, before anything was measured."""
    return dict.fromkeys(map(matrix_kind, names), (None, None))


def _is_error(entry: object) -> bool:
    return isinstance(entry, Mapping) and isinstance(entry.get("matrix"), str)


def _error(entry: Mapping[str, Any]) -> tuple[str, Error]:
    return entry["matrix"], (_number(entry.get("median")), _number(entry.get("largest")))


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
