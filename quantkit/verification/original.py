"""The original's weights, as an artifact is held to them: from a golden file, or from the model itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from quantkit.files.digest import source_digest
from quantkit.files.source_file import SourceFile
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.folding import folded
from quantkit.models.spec import EMBEDDING, ModelSpec, TensorSlot
from quantkit.tensors.digests import RoundedDigests
from quantkit.tensors.views import QuantizedView, TensorView, Weight, values_view
from quantkit.verification.weight_facts import SKETCH_DEVIATION, Sketcher, WeightFacts, value_chunks

if TYPE_CHECKING:
    from quantkit.verification.golden import Golden
    from quantkit.verification.steps.identity import TextFacts

SKETCHED = 5.5 * SKETCH_DEVIATION
"""Relative deviation of an error read from a sketch that chance does not reach: 5.5 standard errors."""
EXACT = 0.02
"""Of an error that is computed: what folding and rounding to 16 bits change in it."""


class Meter(Protocol):
    """Takes the rows of a tensor in order, and tells how far they lie from the original's."""

    def add(self, start: int, values: np.ndarray) -> None:
        """Rows from `start` on, float32."""
        ...

    def damage(self) -> float:
        """||W - Q||^2, exact or estimated."""
        ...


class OriginalWeights(Protocol):
    """What is known of the original's tensors. `deviation`: how far a measured error may lie from the true one."""

    deviation: float

    def digests(self, slot: TensorSlot) -> Mapping[str, str]:
        """Digests of the tensor, by the roundings of `quantkit.tensors.digests`."""
        ...

    def origins(self, slot: TensorSlot) -> Collection[str]:
        """Digests of the dense weights that a quantized tensor may have been made of: folded already, or not yet."""
        ...

    def energy(self, slot: TensorSlot) -> float:
        """||W||^2."""
        ...

    def vector(self, slot: TensorSlot) -> np.ndarray:
        """A norm's values, float32."""
        ...

    def meter(self, slot: TensorSlot) -> Meter:
        """A new meter for a matrix."""
        ...


def source_name(names: Collection[str], name: str) -> str:
    """The tensor that a slot of the folded model is made of: a head that was tied reads the embedding."""
    return name if name in names else EMBEDDING


class RecordedWeights:
    """From a golden file; `folds` when the artifact is the folded model."""

    deviation = SKETCHED

    def __init__(
        self,
        spec: ModelSpec,
        tensors: Mapping[str, WeightFacts],
        digests: Mapping[str, Mapping[str, str]],
        *,
        folds: bool,
    ) -> None:
        self._spec, self._tensors, self._digests, self._folds = spec, tensors, digests, folds

    def _facts(self, slot: TensorSlot) -> tuple[str, WeightFacts, float]:
        name = source_name(self._tensors, slot.name)
        return name, self._tensors[name], self._spec.fold_factor(slot.role) if self._folds else 1.0

    def digests(self, slot: TensorSlot) -> Mapping[str, str]:
        """See `OriginalWeights`."""
        own = self._digests.get(slot.name) if self._folds else None
        return own if own is not None else self._facts(slot)[1].digests

    def origins(self, slot: TensorSlot) -> Collection[str]:
        """See `OriginalWeights`."""
        return {*self.digests(slot).values(), *self._facts(slot)[1].digests.values()}

    def energy(self, slot: TensorSlot) -> float:
        """See `OriginalWeights`."""
        _, facts, factor = self._facts(slot)
        return facts.energy * factor**2

    def vector(self, slot: TensorSlot) -> np.ndarray:
        """See `OriginalWeights`."""
        _, facts, factor = self._facts(slot)
        assert facts.values is not None
        values: np.ndarray = facts.values * np.float32(factor)
        return values

    def meter(self, slot: TensorSlot) -> Meter:
        """See `OriginalWeights`."""
        name, facts, factor = self._facts(slot)
        assert facts.sketch is not None
        return _SketchMeter(name, facts.sketch.astype(np.float64) * factor)


class _SketchMeter:
    def __init__(self, name: str, sketch: np.ndarray) -> None:
        self._sketcher, self._sketch = Sketcher(name), sketch

    def add(self, start: int, values: np.ndarray) -> None:
        self._sketcher.add(values)

    def damage(self) -> float:
        return float(np.square(self._sketch - self._sketcher.sketch()).sum())


class ModelWeights:
    """From the model itself, read when asked; `folds` when the artifact is the folded model."""

    deviation = EXACT

    def __init__(self, model: Checkpoint, *, folds: bool) -> None:
        self._weights = (folded(model) if folds else model).weights
        self._unfolded = model.weights
        self._folds = folds
        self._energies: dict[str, float] = {}

    def digests(self, slot: TensorSlot) -> Mapping[str, str]:
        """See `OriginalWeights`."""
        return _digests(self._weights[slot.name])

    def origins(self, slot: TensorSlot) -> Collection[str]:
        """See `OriginalWeights`."""
        unfolded = self._unfolded[source_name(self._unfolded, slot.name)]
        return {*self.digests(slot).values(), *(_digests(unfolded).values() if self._folds else ())}

    def energy(self, slot: TensorSlot) -> float:
        """See `OriginalWeights`."""
        if slot.name not in self._energies:
            chunks = value_chunks(self._weights[slot.name])
            self._energies[slot.name] = sum(float(np.square(values, dtype=np.float64).sum()) for _, values in chunks)
        return self._energies[slot.name]

    def vector(self, slot: TensorSlot) -> np.ndarray:
        """See `OriginalWeights`."""
        return np.concatenate([values for _, values in value_chunks(self._weights[slot.name])])

    def meter(self, slot: TensorSlot) -> Meter:
        """See `OriginalWeights`."""
        view = self._weights[slot.name]
        if isinstance(view, QuantizedView):
            view = values_view(view.name, view.read())
        return _ExactMeter(view)


def _digests(view: Weight) -> dict[str, str]:
    digests = RoundedDigests()
    for _, values in value_chunks(view):
        digests.update(values)
    return digests.digests()


class _ExactMeter:
    def __init__(self, view: TensorView) -> None:
        self._view, self._damage = view, 0.0

    def add(self, start: int, values: np.ndarray) -> None:
        wide = self._view.fetch(start, start + len(values)).astype(np.float32)
        self._damage += float(np.square(np.subtract(wide, values, dtype=np.float32), dtype=np.float64).sum())

    def damage(self) -> float:
        return self._damage


@dataclass(frozen=True, slots=True, eq=False)
class Original:
    """What an artifact is held to.

    text: facts of its tokenizer, or why they cannot be read. golden, model: what was given. parent: whether `model` is
    the quantized model that the artifact was exported from, and there is no golden file.
    """

    spec: ModelSpec
    text: TextFacts | str
    golden: Golden | None
    model: Checkpoint | None
    parent: bool

    def weights(self, artifact: ModelSpec) -> OriginalWeights:
        """Its weights, as an artifact of that architecture must hold them."""
        folds = artifact.architecture != self.spec.architecture
        if self.golden is not None:
            return RecordedWeights(self.spec, self.golden.tensors, self.golden.folded, folds=folds)
        assert self.model is not None
        return ModelWeights(self.model, folds=folds)


def same_files(checkpoint: Checkpoint, model: Checkpoint | None, source: Sequence[Mapping[str, Any]] | None) -> bool:
    """Whether the weight files are those of a golden file's `source`, or of `model`; hashes only if the sizes agree."""
    sizes = sorted(SourceFile.open(path).size for path in checkpoint.inputs)
    if source is None:
        if model is None or sizes != sorted(SourceFile.open(path).size for path in model.inputs):
            return False
        source = source_digest(model.inputs)
    elif sizes != sorted(entry.get("size", -1) for entry in source):
        return False
    digests = sorted(str(entry.get("sha256")) for entry in source)
    return bool(sizes) and digests == sorted(entry["sha256"] for entry in source_digest(checkpoint.inputs))
