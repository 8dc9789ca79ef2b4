"""The numbers of an artifact, tensor by tensor, each read once: are they the original's, and those of the run?

dense       the digest is that of the original's values, rounded on the way as a dense artifact may round them
norms       the same; or what the run's manifest says that smoothing made of them (without a manifest: anything that
            the layers behind make up for, which their errors tell)
quantized   the digest of levels, scales and offsets is the manifest's, and that of what the run made, where the
            container keeps it; the dense weights that the manifest says it was made of are the original's; the error
            from the original, with smoothing undone, is the recorded one, from above and from below; where none is
            recorded it is at most `WORST` times what rounding to the artifact's own grid costs
parent      every tensor holds the numbers of the quantized model that it was exported from
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import LINEAR_ROLES, ModelSpec, TensorSlot
from quantkit.solver.unsmoothing import Smoothing, divided_names, norm_names, norm_ratio
from quantkit.tensors.digests import values_digest
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.views import QuantizedView, TensorView, Weight
from quantkit.verification.original import OriginalWeights
from quantkit.verification.steps.limits import FLOAT16_NOISE
from quantkit.verification.weight_facts import rows_per_chunk, value_chunks

WORST = 10.0
"""Plain error of an honest method over that of rounding to its own grid, at most: what makes up for lost outputs moves
weights up to 4 times as far."""
WORST_DENSE = 0.5
"""The same of dense values that were quantized once by nobody knows what: over ||W||^2."""
ROUNDING_NOISE = {
    "float32": 0.0,
    "bfloat16": 64 * FLOAT16_NOISE,
    "float16": FLOAT16_NOISE,
    "bfloat16, then float16": 65 * FLOAT16_NOISE,
}
SLACK = {np.dtype(np.float32): 1e-6, np.dtype(np.float16): 3e-4}
"""What storing values in a dtype may add to the root of a relative squared error; `COARSE` for others (bfloat16)."""
COARSE = 3e-3
SCALE_SLACK = 3e-4
"""The same of scales that folding rounds once more to 16 bits."""


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """What a manifest says of the numbers in its artifact; `known` is False where it says nothing.

    digests, values: by name, of quantized tensors and of dense ones that were quantized once. errors: relative squared
    errors from the dense weights. origins: digests of those. run: digests of what the run made. norms: digests of the
    norms that smoothing changed. divided: scales of matrices.
    """

    known: bool
    digests: Mapping[str, str]
    values: Mapping[str, str]
    errors: Mapping[str, float]
    origins: Mapping[str, str]
    run: Mapping[str, str]
    norms: Mapping[str, str]
    divided: Mapping[str, np.ndarray]


def read_record(manifest: Mapping[str, Any] | None, spec: ModelSpec) -> Record:
    """The record in a manifest; entries of another kind than expected count as missing."""
    parts = [(manifest or {}).get("weights"), ((manifest or {}).get("report") or {}).get("weights")]
    found = [part for part in parts if isinstance(part, Mapping)]
    digests: dict[str, str] = {}
    values: dict[str, str] = {}
    errors: dict[str, float] = {}
    origins: dict[str, str] = {}
    run: dict[str, str] = {}
    norms: dict[str, str] = {}
    divided: dict[str, np.ndarray] = {}
    sizes = divided_names(spec)
    for part in reversed(found):
        for name, entry in _items(part, "tensors"):
            if isinstance(entry, Mapping):
                digests |= {name: entry["digest"]} if isinstance(entry.get("digest"), str) else {}
                values |= {name: entry["values"]} if isinstance(entry.get("values"), str) else {}
                origins |= {name: entry["origin"]} if isinstance(entry.get("origin"), str) else {}
                run |= {name: entry["run"]} if isinstance(entry.get("run"), str) else {}
                errors |= {name: entry["error"]} if _is_error(entry.get("error")) else {}
        errors |= {name: error for name, error in _items(part, "errors") if _is_error(error)}
        origins |= {name: digest for name, digest in _items(part, "origins") if isinstance(digest, str)}
        if part.get("architecture", spec.architecture) == spec.architecture:  # folding changes the run's numbers
            run |= {name: digest for name, digest in _items(part, "digests") if isinstance(digest, str)}
        norms |= {name: digest for name, digest in _items(part, "norms") if isinstance(digest, str)}
        for name, text in _items(part, "divided"):
            scale = _scale(text)
            if scale is not None and len(scale) == sizes.get(name):
                divided[name] = scale
    known = any(isinstance(part.get("tensors"), Mapping) for part in found)
    return Record(known, digests, values, errors, origins, run, norms, divided)


def _items(part: Mapping[str, Any], key: str) -> list[tuple[str, Any]]:
    return list(part[key].items()) if isinstance(part.get(key), Mapping) else []


def _is_error(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value >= 0


def _scale(text: object) -> np.ndarray | None:
    try:
        scale = np.frombuffer(base64.b64decode(str(text), validate=True), "<f4")
    except ValueError:
        return None
    return scale if np.isfinite(scale).all() and (scale > 0).all() else None


@dataclass(slots=True)
class Findings:
    """problems: one line per tensor that is wrong. squared_error: relative, of the layers, embedding and head added:
    what predictions may suffer from. dense, quantized: tensors compared, by kind."""

    problems: list[str]
    squared_error: float = 0.0
    dense: int = 0
    quantized: int = 0


class WeightCheck:
    """Compares the tensors of `artifact` with the original's, where there is one, and with its own record."""

    def __init__(self, artifact: Checkpoint, record: Record, original: OriginalWeights | None, *, parent: bool) -> None:
        self._artifact, self._record, self._original = artifact, record, original
        self._parent = parent
        self._findings = Findings([])
        self._layers = [0.0, 0.0]
        self._smoothing = Smoothing(artifact.spec, {})
        self._quantized = artifact.holds_codes or bool(record.values)

    def slots(self) -> Iterator[TensorSlot]:
        """Compare tensor by tensor; yields each when it has been."""
        if self._original is not None and not self._parent:
            self._smoothing = Smoothing(self._artifact.spec, self._scales(self._original))
        for slot in self._artifact.spec.slots():
            self._compare(slot, self._artifact.weights[slot.name])
            yield slot

    def findings(self) -> Findings:
        """What was found, after `slots`."""
        damage, power = self._layers
        self._findings.squared_error += damage / power if power else 0.0
        return self._findings

    def _scales(self, original: OriginalWeights) -> dict[str, np.ndarray]:
        """What must be undone: the norms' ratios where they are not the original's, and the recorded scales."""
        scales = dict(self._record.divided)
        slots = {slot.name: slot for slot in self._artifact.spec.slots()}
        for name in norm_names(self._artifact.spec):
            changed = self._values(self._artifact.weights[name])
            if values_digest([changed]) not in original.digests(slots[name]).values() and self._may_be_smoothed(
                name, changed
            ):
                ratio = norm_ratio(original.vector(slots[name]), changed)
                if np.isfinite(ratio).all() and (ratio > 0).all():
                    scales[name] = ratio
        return scales

    def _may_be_smoothed(self, name: str, changed: np.ndarray) -> bool:
        if self._record.known:
            return self._record.norms.get(name) == values_digest([changed])
        return self._quantized

    @staticmethod
    def _values(view: Weight) -> np.ndarray:
        return np.concatenate([values for _, values in value_chunks(view)])

    def _compare(self, slot: TensorSlot, view: Weight) -> None:
        if isinstance(view, QuantizedView):
            self._findings.quantized += 1
            self._compare_quantized(slot, view)
        else:
            self._findings.dense += 1
            self._compare_dense(slot, view)

    def _compare_dense(self, slot: TensorSlot, view: TensorView) -> None:
        original, record = self._original, self._record
        meter = original.meter(slot) if original is not None and len(slot.shape) == 2 else None
        digest = values_digest(self._metered(slot, view, meter))
        if slot.name in record.values and record.values[slot.name] != digest:
            self._problem(slot, "holds other values than its manifest records")
        elif original is not None:
            rounding = next((name for name, known in original.digests(slot).items() if known == digest), None)
            if rounding is not None:
                self._add(slot, ROUNDING_NOISE[rounding])
            elif meter is None:
                if slot.name not in self._smoothing.scales:
                    self._problem(slot, "is not the original's")
            elif slot.name in record.values or (self._quantized and not record.known):
                self._check_origin(slot, original)
                slack = SLACK.get(view.dtype, COARSE)
                self._judge(slot, meter.damage(), WORST_DENSE * original.energy(slot), slack)
            else:
                off = math.sqrt(meter.damage() / max(original.energy(slot), 1e-300))
                self._problem(slot, f"is not the original's, {off:.2g} of its size away")

    def _metered(self, slot: TensorSlot, view: TensorView, meter: Any) -> Iterator[np.ndarray]:  # noqa: ANN401
        for start, values in value_chunks(view):
            if meter is not None:
                meter.add(start, self._smoothing.undone(slot, values, start))
            yield values

    def _compare_quantized(self, slot: TensorSlot, view: QuantizedView) -> None:
        original, record = self._original, self._record
        tensor = view.read()
        digest = tensor.numbers_digest() if record.known else None
        if digest is not None and slot.name not in record.digests:
            self._problem(slot, "is quantized, and its manifest records no numbers of it")
        elif digest is not None and record.digests[slot.name] != digest:
            self._problem(slot, "holds other numbers than its manifest records")
        elif digest is not None and record.run.get(slot.name, digest) != digest:
            self._problem(slot, "holds other numbers than its run made")
        if original is None:
            return
        self._check_origin(slot, original)
        meter = original.meter(slot)
        step = rows_per_chunk(slot.shape)
        for start in range(0, slot.shape[0], step):
            values = tensor.part(slice(start, start + step)).dequantized()
            meter.add(start, self._smoothing.undone(slot, values, start))
        self._judge(slot, meter.damage(), WORST * grid_damage(tensor), SCALE_SLACK)

    def _check_origin(self, slot: TensorSlot, original: OriginalWeights) -> None:
        origin = self._record.origins.get(slot.name)
        if origin is not None and not self._parent and origin not in original.origins(slot):
            self._problem(slot, "was made of other weights than the original's, as its manifest says")

    def _judge(self, slot: TensorSlot, damage: float, worst: float, slack: float) -> None:
        """Hold a measured error to the recorded one, or to the worst that the grid allows."""
        assert self._original is not None
        power = self._original.energy(slot)
        if power == 0:
            if damage:
                self._problem(slot, "is zero in the original, and is not here")
            return
        found = damage / power
        self._add(slot, found)
        wanted = self._record.errors.get(slot.name)
        if wanted is None or self._parent:
            limit = worst / power
            if not math.sqrt(found) <= math.sqrt(limit * (1 + self._original.deviation)) + slack:
                self._problem(slot, f"is {_share(found)} off the original; its own grid makes {_share(limit)} at most")
            return
        low, high = (math.sqrt(max(0.0, wanted * (1 + sign * self._original.deviation))) for sign in (-1, 1))
        if not low - slack <= math.sqrt(found) <= high + slack:
            self._problem(slot, f"is {_share(found)} off the original; its manifest records {_share(wanted)}")

    def _add(self, slot: TensorSlot, squared_error: float) -> None:
        if self._original is None or len(slot.shape) != 2 or not squared_error:
            squared_error = 0.0
        if slot.role in LINEAR_ROLES and self._original is not None:
            power = self._original.energy(slot)
            self._layers[0] += squared_error * power
            self._layers[1] += power
        else:
            self._findings.squared_error += squared_error

    def _problem(self, slot: TensorSlot, what: str) -> None:
        self._findings.problems.append(f"{slot.name} {what}")


def _share(squared_error: float) -> str:
    return f"{math.sqrt(squared_error):.3%}"


def grid_damage(tensor: QuantizedTensor) -> float:
    """||W - Q||^2 that rounding to the grid of `tensor` costs: step^2 / 12 for every weight."""
    scale, _ = tensor.scheme.effective(tensor.arrays)
    width: int = tensor.shape[1] // scale.shape[1]
    return float(np.square(scale, dtype=np.float64).sum()) * width / 12


def parent_problems(artifact: Checkpoint, parent: Checkpoint) -> Iterator[str | None]:
    """Compare every quantized tensor with the same of `parent`, which is folded already where the artifact is.

    Yields one line where numbers differ, None where they are the same; tensors that one of the two holds dense are
    left to `WeightCheck`.
    """
    for slot in artifact.spec.slots():
        mine, theirs = artifact.weights[slot.name], parent.weights[slot.name]
        if isinstance(mine, QuantizedView) and isinstance(theirs, QuantizedView):
            yield _different(slot.name, mine.read(), theirs.read())


def _offsets_rounded(mine: QuantizedTensor, theirs: QuantizedTensor) -> bool:
    """Whether the two differ in nothing but offsets that a container rounds to float16, such as Q4_1's minimum."""
    (scale, offset), (their_scale, their_offset) = (x.scheme.effective(x.arrays) for x in (mine, theirs))
    repeats = scale.shape[1] // max(1, their_scale.shape[1])
    if mine.shape != theirs.shape or their_scale.shape[1] * repeats != scale.shape[1]:
        return False
    wide = np.repeat(their_offset, repeats, axis=1)
    near = np.abs(offset - wide) <= np.abs(wide) * np.float32(2.0**-11) + np.float32(2.0**-25)
    same_scale = np.array_equal(scale, np.repeat(their_scale, repeats, axis=1))
    return bool(near.all()) and same_scale and np.array_equal(mine.codes, theirs.codes)


def _different(name: str, mine: QuantizedTensor, theirs: QuantizedTensor) -> str | None:
    if mine.numbers_digest() == theirs.numbers_digest() or _offsets_rounded(mine, theirs):
        return None
    step, wrong = rows_per_chunk(mine.shape), 0
    for start in range(0, mine.shape[0], step):
        rows = slice(start, start + step)
        wrong += int((mine.part(rows).dequantized() != theirs.part(rows).dequantized()).sum())
    size = mine.shape[0] * mine.shape[1]
    return f"{name} does not hold its parent's numbers: {wrong:,} of {size:,} weights differ" if wrong else None
