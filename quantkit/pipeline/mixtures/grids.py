"""What `quantize` can choose for every layer: bits and group sizes that a container holds and engines compute with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from quantkit import registry
from quantkit.errors import QuantkitError, UnsupportedSpec
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.folding import with_architecture
from quantkit.models.spec import ModelSpec
from quantkit.pipeline.mixtures.mixture import Groups
from quantkit.pipeline.planned_model import planned
from quantkit.pipeline.planning.verdicts import as_written, verdicts
from quantkit.pipeline.recipe import OUTER, Assignment, Recipe, Rule
from quantkit.protocols import ExportOptions
from quantkit.tensors.block_options import Candidate, Candidates
from quantkit.tensors.scheme import Scheme
from quantkit.tensors.schemes.affine_groups import AffineGroups

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
Assignments = Mapping[str, Assignment]


class Grids:
    """The choices for a model in a container, and the bytes of the finished files with each.

    Args:
        checkpoint: the dense model.
        container, options: what is to be written in the end.
        assignments: what every weight becomes without a choice; layers that no rule of `recipe` decides are chosen for.
        recipe: the user's exceptions, which stand.
        bits, group_sizes: those that are tried.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        container: str,
        options: ExportOptions,
        assignments: Assignments,
        recipe: Recipe,
        *,
        bits: Sequence[int] = BITS,
        group_sizes: Sequence[int] = GROUP_SIZES,
    ) -> None:
        self._checkpoint = checkpoint
        self._container = container
        self._options = options
        self._assignments = assignments
        self._slots = {
            slot.name: slot
            for slot in checkpoint.spec.slots()
            if slot.name in assignments
            and slot.role not in OUTER
            and assignments[slot.name].scheme is not None
            and not any(rule.matches(slot) for rule in recipe.rules)
        }
        if not self._slots:
            raise UnsupportedSpec("every layer is decided by the recipe: there is nothing to choose", hint="drop rules")
        self._schemes = self._usable([self._scheme(b, g) for b in bits for g in group_sizes])
        self.candidates: Candidates = self._sized()
        self.groups: Groups = _groups(checkpoint.spec, list(self._slots)) if self._fuses() else self._alone()

    def size(self, chosen: Mapping[str, Candidate]) -> int:
        """Bytes of the finished files."""
        return self._size({name: candidate.scheme for name, candidate in chosen.items()})

    def _scheme(self, bits: int, group_size: int) -> Scheme | None:
        base = self._assignments[next(iter(self._slots))].scheme
        assert base is not None
        try:
            return base.with_settings(bits=bits, group_size=group_size)
        except UnsupportedSpec:
            return None

    def _usable(self, schemes: Sequence[Scheme | None]) -> list[Scheme]:
        """Those that every engine takes which takes the usual one, in one of its kernels for all of them."""
        base = self._assignments[next(iter(self._slots))].scheme
        tried = [scheme for scheme in dict.fromkeys((base, *schemes)) if scheme is not None]
        taken = {scheme: self._kernels(scheme) for scheme in tried}
        usable = [scheme for scheme, kernels in taken.items() if kernels is not None]
        engines = dict.fromkeys(engine for engine, _ in taken[tried[0]] or ())
        for engine in engines:
            kernels = dict.fromkeys(one for s in usable for one in taken[s] or () if one[0] == engine)
            usable = max(([s for s in usable if one in (taken[s] or ())] for one in kernels), key=len)
        return usable

    def _kernels(self, scheme: Scheme) -> list[tuple[str, str]] | None:
        """Engines and kernels that take a model all of whose layers are on one grid; None where it cannot be held."""
        return self._takers(dict.fromkeys(self._slots, scheme))

    def _takers(self, schemes: Mapping[str, Scheme | None]) -> list[tuple[str, str]] | None:
        try:
            model = self._planned(schemes)
            artifact = registry.exporter(self._container).prepare(model, self._options)
        except QuantkitError:
            return None
        arch = str(artifact.options.get("arch", self._options.arch))
        found = verdicts(as_written(with_architecture(model, arch), artifact), target=self._options.target)
        return [(verdict.engine, verdict.kernel) for verdict in found if verdict.refusal is None]

    def _planned(self, schemes: Mapping[str, Scheme | None]) -> Checkpoint:
        assignments = {
            name: replace(one, scheme=schemes[name]) if name in schemes else one
            for name, one in self._assignments.items()
        }
        return planned(self._checkpoint, assignments)

    def _size(self, schemes: Mapping[str, Scheme | None]) -> int:
        return registry.exporter(self._container).prepare(self._planned(schemes), self._options).size

    def _sized(self) -> Candidates:
        """Candidates of every layer, with what its bytes are more than with the smallest."""
        base = dict.fromkeys(self._slots, self._schemes[0])
        sizes: dict[tuple[tuple[int, ...], Scheme], int] = {}

        def nbytes(name: str, scheme: Scheme) -> int | None:
            key = self._slots[name].shape, scheme
            if key not in sizes:
                sizes[key] = self._size({**base, name: scheme})
            return sizes[key]

        found = {}
        for name, slot in self._slots.items():
            fitting = [scheme for scheme in self._schemes if slot.shape[1] % scheme.group_width(slot.shape[1]) == 0]
            sized = [(nbytes(name, scheme) or 0, scheme) for scheme in fitting]
            least = min(size for size, _ in sized)
            found[name] = tuple(
                Candidate(type=str(scheme), scheme=scheme, nbytes=size - least)
                for size, scheme in sorted(sized, key=lambda one: one[0])
            )
        return found

    def _fuses(self) -> bool:
        """Whether a kernel that takes layers alone does not take them where others that read the same differ."""
        first, *others = self._schemes
        if not others:
            return False
        every = dict.fromkeys(self._slots, first)
        mixed = {**every, next(iter(self._slots)): others[-1]}
        alone = set(self._takers(every) or ()) & set(self._takers(dict.fromkeys(self._slots, others[-1])) or ())
        return bool(alone - set(self._takers(mixed) or ()))

    def _alone(self) -> Groups:
        return [(name,) for name in self._slots]


def _groups(spec: ModelSpec, names: Sequence[str]) -> Groups:
    """The layers of every block by what they read."""
    every = [
        tuple(name for role in group.roles if (name := spec.weight_name(layer, role)) in names)
        for layer in range(spec.num_hidden_layers)
        for group in spec.groups
    ]
    return [group for group in every if group]


def with_choice(recipe: Recipe, chosen: Mapping[str, Candidate]) -> Recipe:
    """The user's rules, and behind them one for every layer that was chosen for."""
    rules = []
    for name, candidate in chosen.items():
        scheme = candidate.scheme
        assert isinstance(scheme, AffineGroups)  # what a recipe has settings for
        rules.append(Rule(match=name, settings={"bits": scheme.bits, "group_size": scheme.group_size}))
    return Recipe((*recipe.rules, *rules), recipe.where)
