"""Which engines' matrix kernels take a quantized model, and why the others do not. Asked before any work.

    kernel            containers              bits        groups           matrix of N rows and K columns
    vllm-cpu          gptq sym, awq, c-t      4           32 64 128 -1 *   N and K multiples of 32
    vllm-cuda-marlin  gptq sym, awq, c-t      4, sym 8    32 64 128 -1     any: padded to Marlin's tiles **
    gptqmodel-torch   gptq                    2 to 8      16 .. 1024 -1    any
    transformers      c-t                     2 to 8      any              any: it computes with dense weights
    cpm.cu            marlin, target cpm.cu   sym 4       128 -1           whole tiles ***
    ist-marlin        marlin, target ist      sym 4       128 -1           N a multiple of 256, K of 128
    llama.cpp         gguf                    any         any              K a multiple of 32

c-t is compressed-tensors; a group of -1 is a whole row. vLLM and CPM.cu make one matrix of q, k and v, and one of gate
and up: they must be on one grid, and N counts the rows of all.
*    in compressed-tensors any even group, and no quantized head
**   a quantized head only in multiples of 64 rows, which the 73448 of the 8B model are not
***  N a multiple of 64 and K of 128, or N of 128 and K of 64

Sources: vLLM 0.32.0 `model_executor/kernels/linear/mixed_precision/cpu.py` and `marlin.py`,
`layers/quantization/utils/marlin_utils.py`; GPTQModel 7.7.0 `nn_modules/qlinear/torch.py`; CPM.cu
`src/qgemm/gptq_marlin/`; IST-DASLab marlin `marlin/__init__.py`; llama.cpp `ggml/src/ggml-common.h` (blocks of 32).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from quantkit.exporters._hf_folder import FUSED_ROLES, grid
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import LINEAR_ROLES, Role
from quantkit.tensors.scheme import PER_ROW
from quantkit.tensors.schemes.affine_groups import AffineGroups, affine
from quantkit.tensors.views import QuantizedView, Weight

USUAL_GROUPS = (32, 64, 128, PER_ROW)
MARLIN_GROUPS = (128, PER_ROW)
GPTQMODEL_GROUPS = (16, 32, 64, 128, 256, 512, 1024, PER_ROW)
BLOCK = 32
TILE = 64
HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class Matrix:
    """What a kernel multiplies with: one weight, or several of a block side by side.

    weights: as they lie in the model, at least one of them quantized.
    """

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
    def scheme(self) -> AffineGroups:
        """The grid of its quantized weights, which `mixture` has found to be the same."""
        found = next(weight for weight in self.weights if isinstance(weight, QuantizedView))
        return affine(found.name, found.scheme, container="a matrix kernel")

    def mixture(self) -> str | None:
        """Why its weights cannot be one matrix: they are not on one grid."""
        first, *others = self.weights
        for other in others:
            if grid(other) != grid(first):
                return (
                    f"{other.name} is {grid(other) or 'dense'} and {first.name} {grid(first) or 'dense'}, "
                    "which it makes one matrix of"
                )
        return None


Check = Callable[[Matrix, str], "str | None"]
"""check(matrix, container): why the kernel does not take it ("is int3 ..."), or None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One row of the table. targets: of a container that has several, those that it reads; empty = any."""

    name: str
    containers: tuple[str, ...]
    check: Check
    fuses: bool = False
    pads: bool = False
    targets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether `kernel` takes a model. refusal: why not, with the weight's name. remark: at what cost it does."""

    kernel: str
    refusal: str | None = None
    remark: str | None = None


def verdicts(model: Checkpoint, container: str, *, target: str | None = None) -> tuple[Verdict, ...]:
    """What every kernel that reads `container` says to the quantized weights of `model`; no tensor data is read.

    Args:
        model: as it will lie in the container; see `quantkit.pipeline.quantization.planned`.
        container: an exporter's name.
        target: the engine whose layout is meant, where the container has several.
    """
    return tuple(
        _verdict(kernel, model, container)
        for kernel in KERNELS
        if container in kernel.containers and (target is None or not kernel.targets or target in kernel.targets)
    )


def _verdict(kernel: Kernel, model: Checkpoint, container: str) -> Verdict:
    padded: list[Matrix] = []
    for matrix in _matrices(model, container, fused=kernel.fuses):
        refusal = matrix.mixture() if kernel.fuses else None
        problem = None if refusal else kernel.check(matrix, container)
        if refusal or problem:
            return Verdict(kernel.name, refusal or f"{matrix.name} {problem}")
        if kernel.pads and not _whole_tiles(matrix):
            padded.append(matrix)
    if not padded:
        return Verdict(kernel.name)
    rows, cols = padded[0].shape
    return Verdict(
        kernel.name, remark=f"pads {len(padded)} matrices at every step ({padded[0].name}, {rows} x {cols}, ...)"
    )


def _matrices(model: Checkpoint, container: str, *, fused: bool) -> Iterator[Matrix]:
    """Everything with a quantized weight, in the order of the model; the head where the container packs it."""
    slots = {(slot.layer, slot.role): slot.name for slot in model.spec.slots()}
    for layer in range(model.spec.num_hidden_layers):
        for roles in FUSED_ROLES if fused else [(role,) for role in LINEAR_ROLES]:
            weights = tuple(model.weights[slots[layer, role]] for role in roles)
            if any(isinstance(weight, QuantizedView) for weight in weights):
                yield Matrix(weights)
    head = model.weights.get(slots.get((None, Role.LM_HEAD), ""))
    if isinstance(head, QuantizedView) and container in PACKS_HEAD:
        yield Matrix((head,))


def _whole_tiles(matrix: Matrix) -> bool:
    rows, cols = matrix.shape
    return (rows % TILE, cols % (2 * TILE)) == (0, 0) or (rows % (2 * TILE), cols % TILE) == (0, 0)


def _vllm_cpu(matrix: Matrix, container: str) -> str | None:
    spec, (rows, cols) = matrix.scheme, matrix.shape
    if matrix.name == HEAD:
        return f"is {spec}; it takes a dense head only"
    if spec.bits != 4:
        return f"is {spec}; it takes 4 bits only"
    if container == "gptq" and not spec.symmetric:
        return f"is {spec}; it takes GPTQ without zero points only"
    if spec.group_size not in USUAL_GROUPS and (container != "compressed-tensors" or spec.group_size % 2):
        return f"is {spec}; it takes groups of 32, 64, 128 or a row"
    if rows % BLOCK or cols % BLOCK:
        return f"is {rows} x {cols}; it takes multiples of {BLOCK}"
    return None


def _vllm_marlin(matrix: Matrix, container: str) -> str | None:
    spec, (rows, cols) = matrix.scheme, matrix.shape
    if spec.bits != 4 and not (spec.bits == 8 and spec.symmetric):
        return f"is {spec}; it takes 4 bits, or 8 without zero points"
    if container == "gptq" and not spec.symmetric:
        return f"is {spec}; it takes GPTQ without zero points only"
    if spec.group_size not in USUAL_GROUPS:
        return f"is {spec}; it takes groups of 32, 64, 128 or a row"
    if matrix.name == HEAD and rows % TILE:
        return f"is {rows} x {cols}; it takes a quantized head in multiples of {TILE} rows, this one dense"
    return None


def _gptqmodel(matrix: Matrix, container: str) -> str | None:
    if matrix.scheme.group_size not in GPTQMODEL_GROUPS:
        return f"is {matrix.scheme}; it takes groups of 16, 32, 64, 128, 256, 512, 1024 or a row"
    return None


def _cpm_cu(matrix: Matrix, container: str) -> str | None:
    rows, cols = matrix.shape
    if not _whole_tiles(matrix):
        return f"is {rows} x {cols}; it takes multiples of {TILE}, one of the two of {2 * TILE}"
    return _marlin_grid(matrix)


def _ist(matrix: Matrix, container: str) -> str | None:
    rows, cols = matrix.shape
    if rows % 256 or cols % 128:
        return f"is {rows} x {cols}; it takes multiples of 256 x 128"
    return _marlin_grid(matrix)


def _marlin_grid(matrix: Matrix) -> str | None:
    spec = matrix.scheme
    if spec.bits != 4 or not spec.symmetric or spec.group_size not in MARLIN_GROUPS:
        return f"is {spec}; it takes symmetric 4 bits in groups of 128 or a row"
    return None


def _llama_cpp(matrix: Matrix, container: str) -> str | None:
    rows, cols = matrix.shape
    return f"is {rows} x {cols}; it takes multiples of {BLOCK} columns" if cols % BLOCK else None


PACKS_HEAD = ("compressed-tensors", "gguf")
"""Containers that hold a quantized head; the others write its values."""

KERNELS = (
    Kernel(name="vllm-cpu", containers=("gptq", "awq", "compressed-tensors"), check=_vllm_cpu, fuses=True),
    Kernel(
        name="vllm-cuda-marlin",
        containers=("gptq", "awq", "compressed-tensors"),
        check=_vllm_marlin,
        fuses=True,
        pads=True,
    ),
    Kernel(name="gptqmodel-torch", containers=("gptq",), check=_gptqmodel),
    Kernel(name="transformers", containers=("compressed-tensors",), check=lambda matrix, container: None),
    Kernel(name="cpm.cu", containers=("marlin",), check=_cpm_cu, fuses=True, targets=("cpm.cu",)),
    Kernel(name="ist-marlin", containers=("marlin",), check=_ist, targets=("ist",)),
    Kernel(name="llama.cpp", containers=("gguf",), check=_llama_cpp),
)
