"""A kernel as a row of rules, and the matrices that it is asked about."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import Role
from quantkit.protocols import Verdict
from quantkit.tensors.scheme import PER_ROW, Scheme
from quantkit.tensors.schemes.affine_groups import AffineGroups, affine
from quantkit.tensors.views import QuantizedView, Weight, mixture

TILE = 64
MARLIN_GROUPS = (128, PER_ROW)
RENAMED = "the folder's tensors lie under a prefix, where it does not look; `quantkit export hf` writes them without"
"""Said of `Checkpoint.renamed` by engines that read folders by themselves."""
FAMILIES = {"minicpm": "a native MiniCPM", "llama": "a plain Llama", "minicpm3": "a MiniCPM3"}
"""Values of `ModelSpec.architecture` in words."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """What a kernel multiplies with: one weight, or several of a block side by side.

    container: where it lies, an exporter's name. roles: what its weights do. weights: at least one is quantized.
    """

    container: str
    roles: tuple[Role, ...]
    weights: tuple[Weight, ...]

    @property
    def name(self) -> str:
        """The names of its weights, as they begin and end."""
        first, *others = (weight.name for weight in self.weights)
        return first + "".join(f" + {name.split('.')[-2]}" for name in others)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K): rows of all its weights, and columns."""
        return sum(weight.shape[0] for weight in self.weights), self.weights[0].shape[1]

    @property
    def scheme(self) -> Scheme:
        """That of its quantized weights, which are the same."""
        return next(weight.scheme for weight in self.weights if isinstance(weight, QuantizedView))

    @property
    def spec(self) -> AffineGroups:
        """Its scheme, for kernels that take integer zero points only and have refused all others."""
        return affine(self.name, self.scheme, container=self.container)

    @property
    def whole_tiles(self) -> bool:
        """Whether rows and columns are multiples of 64, one of the two of 128, as Marlin's tiles are."""
        rows, cols = self.shape
        return (rows % TILE, cols % (2 * TILE)) == (0, 0) or (rows % (2 * TILE), cols % TILE) == (0, 0)


def takes_any(asked: object) -> None:
    """No refusal, no remark."""


def no_usage(model: Checkpoint) -> str:
    """Nothing that one could type."""
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRules:
    """A kernel that is told by its rules; see `quantkit.protocols.Kernel`.

    check: why it does not take a matrix ("is int3 ..."), or None. check_model: the same for what concerns all of it.
    setting: what the engine must be told to take this model, or None. remark: at what cost it takes it, or None.
    sparsely: how it attends to a model with a `sparse_config`, None = densely.
    fuses: whether it makes one matrix of each of `ModelSpec.groups`. pads: whether it pads matrices that are not whole
    tiles, at every step. affine: whether it takes schemes with integer zero points only.
    title: what people call the engine, empty = as the kernel. usage: lines of a shell or of Python that run an artifact
    called FOLDER, or FILE.gguf; for model cards.
    """

    name: str
    engine: str
    containers: tuple[str, ...]
    targets: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ("minicpm", "llama")
    check: Callable[[Matrix], str | None] = takes_any
    check_model: Callable[[Checkpoint], str | None] = takes_any
    setting: Callable[[Checkpoint], str | None] = takes_any
    remark: Callable[[Checkpoint], str | None] = takes_any
    sparsely: Callable[[Checkpoint], str | None] = takes_any
    fuses: bool = False
    affine: bool = True
    pads: bool = False
    title: str = ""
    usage: Callable[[Checkpoint], str] = no_usage

    def verdict(self, model: Checkpoint) -> Verdict:
        """Ask every rule, first those on the whole model, then those on its matrices in order."""
        refusal, remark = self._refused_model(model), None
        if refusal is None:
            refusal, remark = self._asked(self._matrices(model))
        if refusal is not None:
            return Verdict(kernel=self.name, engine=self.engine, refusal=refusal)
        remark = remark or self.remark(model)
        return Verdict(
            kernel=self.name,
            engine=self.engine,
            setting=self.setting(model),
            remark=remark,
            sparsely=self.sparsely(model) if model.spec.sparse is not None else None,
        )

    def _refused_model(self, model: Checkpoint) -> str | None:
        family = model.spec.architecture
        if family not in self.architectures:
            return f"it has no class for {FAMILIES.get(family, family)}"
        return self.check_model(model)

    def _asked(self, matrices: Iterable[Matrix]) -> tuple[str | None, str | None]:
        """The first refusal, or the remark on all matrices."""
        padded: list[Matrix] = []
        for matrix in matrices:
            mixed = mixture(matrix.weights)
            if mixed is not None:
                return f"{mixed}, which it makes one matrix of", None
            odd = self.affine and not isinstance(matrix.scheme, AffineGroups)
            problem = f"is {matrix.scheme}; it takes integer zero points only" if odd else self.check(matrix)
            if problem is not None:
                return f"{matrix.name} {problem}", None
            if self.pads and not matrix.whole_tiles:
                padded.append(matrix)
        return None, _padding(padded)

    def _matrices(self, model: Checkpoint) -> Iterator[Matrix]:
        """Everything with a quantized weight, in the order of the model."""
        groups = [group.roles for group in model.spec.groups]
        if not self.fuses:
            groups = [(role,) for roles in groups for role in roles]
        names = {(slot.layer, slot.role): slot.name for slot in model.spec.slots()}
        blocks = [(layer, roles) for layer in range(model.spec.num_hidden_layers) for roles in groups]
        for layer, roles in ((None, (Role.EMBED,)), *blocks, (None, (Role.LM_HEAD,))):
            weights = tuple(model.weights[names[layer, role]] for role in roles if (layer, role) in names)
            if any(isinstance(weight, QuantizedView) for weight in weights):
                yield Matrix(model.format, roles, weights)


def _padding(padded: list[Matrix]) -> str | None:
    if not padded:
        return None
    rows, cols = padded[0].shape
    return f"pads {len(padded)} matrices at every step ({padded[0].name}, {rows} x {cols}, ...)"


def marlin_grid(matrix: Matrix) -> str | None:
    """The grids that Marlin kernels were first built for."""
    spec = matrix.spec
    if spec.bits != 4 or not spec.symmetric or spec.group_size not in MARLIN_GROUPS:
        return f"is {spec}; it takes symmetric 4 bits in groups of 128 or a row"
    return None
