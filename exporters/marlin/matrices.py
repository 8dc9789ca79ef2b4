"""Matrices of a Marlin folder: several linear layers side by side, their words and permuted scales.

A layer's columns are the same for all that are fused, so 64 rows of a matrix, a unit of Marlin's order, may belong to
two layers; reading takes the units that hold a layer and drops the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from quantkit.errors import InconsistentCheckpoint, UnsupportedSpec
from quantkit.exporters._hf_folder import Shapes, float16_scales, module_name, named_tensor, taken_parts
from quantkit.exporters.marlin.targets import BITS, CPM_CU, GROUP_SIZES, NAME, Target
from quantkit.files.planned_files import Buffer
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import BLOCKS, LINEAR_ROLES, ModelSpec, TensorSlot
from quantkit.tensors.packing import pack_marlin, unpack_marlin
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.scheme import SCALE_DTYPES
from quantkit.tensors.schemes.affine_groups import AffineGroups, affine
from quantkit.tensors.views import BFLOAT16, QuantizedView, TensorView

WORD = np.dtype("<i4")
TILE, RUN = 16, 64
"""Columns of a tile, and rows of the four tiles that a warp loads together."""

COLUMNS_AT_ONCE = 512
"""Columns that are packed together: what is in work stays in the processor's cache."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """One matrix of the block `layer`: module name and the linear layers in it, in order along its rows."""

    name: str
    layer: int
    slots: tuple[TensorSlot, ...]
    target: Target

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols) of all its layers together."""
        return sum(slot.shape[0] for slot in self.slots), self.slots[0].shape[1]

    def parts(self, spec: AffineGroups) -> Shapes:
        """Its tensors' dtypes and shapes, by the name of the part."""
        rows, cols = self.shape
        return {
            self.target.words: (WORD, (cols // TILE, 2 * rows)),
            self.target.scales: (SCALE_DTYPES[spec.scale_dtype], (spec.groups(cols, name=self.name), rows)),
        }


def matrices(spec: ModelSpec, target: Target) -> list[Matrix]:
    """The matrices of all blocks, in order."""
    slots = {(slot.layer, slot.role): slot for slot in spec.slots()}
    return [
        Matrix(
            f"{BLOCKS}{layer}.{module}" if module else module_name(slots[layer, roles[0]].name),
            layer,
            tuple(slots[layer, role] for role in roles),
            target,
        )
        for layer in range(spec.num_hidden_layers)
        for roles, module in target.fused.items()
    ]


def _check_scheme(name: str, spec: AffineGroups) -> None:
    """Raise `UnsupportedSpec` for a grid that no Marlin kernel has; `name` begins the message."""
    problem = ""
    if spec.bits != BITS or not spec.symmetric:
        problem = "holds symmetric 4 bits only"
    elif spec.group_size not in GROUP_SIZES:
        problem = "has groups of 128, or one per row"
    elif spec.scale_dtype == "float32":
        problem = "has float16 scales"
    if problem:
        raise UnsupportedSpec(
            f"{name}: {NAME} {problem}; this is {spec} with {spec.scale_dtype} scales",
            hint="compressed-tensors holds it; for Marlin quantize with --bits 4 --group-size 128 --sym",
        )


def uniform_grid(model: Checkpoint) -> AffineGroups:
    """The grid of every linear layer of the blocks, scales in float16, as a folder has only one.

    Raises:
        UnsupportedSpec: a layer is dense, has a grid that no Marlin kernel has, or another than the first; or a weight
            that is no such layer is quantized.
    """
    schemes: dict[str, AffineGroups] = {}
    for slot in model.spec.slots():
        weight = model.weights[slot.name]
        if slot.role not in LINEAR_ROLES:
            if isinstance(weight, QuantizedView):
                raise UnsupportedSpec(
                    f"{slot.name} is {weight.scheme}; {NAME} keeps embedding and head dense",
                    hint="compressed-tensors and gguf hold quantized embeddings and heads",
                )
            continue
        if isinstance(weight, TensorView):
            raise UnsupportedSpec(
                f"{slot.name} is dense; in a {NAME} folder every linear layer of the blocks is quantized",
                hint="quantize it as well, or choose compressed-tensors or gptq",
            )
        scheme = affine(slot.name, weight.scheme, container=NAME)
        _check_scheme(slot.name, scheme)
        schemes[slot.name] = scheme
        first, expected = next(iter(schemes.items()))
        if scheme.group_size != expected.group_size:
            raise UnsupportedSpec(
                f"{slot.name} is {scheme} and {first} {expected}; {NAME} has one group size for all",
                hint="compressed-tensors and gptq take several",
            )
    return replace(next(iter(schemes.values())), scale_dtype="float16")


def check_shape(matrix: Matrix, spec: AffineGroups, *, where: str = "") -> None:
    """Raise `UnsupportedSpec` for a matrix that the target's kernel cannot multiply; `where` begins the message."""
    rows, cols = matrix.shape
    target = matrix.target
    problem = ""
    if rows % target.row_step or cols % target.col_step:
        problem = f"multiples of {target.row_step} rows and {target.col_step} columns"
    elif rows % 128 and cols % 128:
        problem = "a multiple of 128 rows or columns"
    elif target is CPM_CU and spec.group_size == cols:
        problem = "more columns than one group: its converter and its kernel order such scales differently"
    if problem:
        names = " + ".join(slot.name for slot in matrix.slots)
        raise UnsupportedSpec(
            f"{where}{names}: {rows} x {cols}; {NAME} for {target.name} needs {problem}",
            hint="quantize with --group-size -1" if "group" in problem else "compressed-tensors and gguf hold it",
        )


def buffers(matrix: Matrix, views: Sequence[QuantizedView]) -> Iterator[Buffer]:
    """The bytes of the matrix's parts, in order. In memory: its codes, one byte each, and little else."""
    tensors = [view.read() for view in views]
    for start in range(0, matrix.shape[1], COLUMNS_AT_ONCE):
        yield pack_marlin(np.concatenate([tensor.codes[:, start : start + COLUMNS_AT_ONCE] for tensor in tensors]))
    scales = [float16_scales(view.name, tensor, container=NAME) for view, tensor in zip(views, tensors, strict=True)]
    yield permuted_scales(np.concatenate(scales).T)


def permuted_scales(scales: np.ndarray) -> np.ndarray:
    """Scales (groups, n) in the order in which a thread needs them; the permutation is its own inverse.

    With several groups, place 64 b + 8 i + j of a row holds scale 64 b + 8 j + i. With one, place 32 b + 8 i + 2 j + l
    holds scale 32 b + 8 j + 2 i + l, where i and j are below 4 and l below 2. Source: `marlin/__init__.py`.
    """
    groups, rows = scales.shape
    fields = (groups, rows // 32, 4, 4, 2) if groups == 1 else (groups, rows // 64, 8, 8)
    return np.ascontiguousarray(scales.reshape(fields).swapaxes(2, 3)).reshape(groups, rows)


def taken(
    matrix: Matrix, grid: AffineGroups, tensors: dict[str, TensorView], where: str
) -> Iterator[tuple[str, QuantizedView]]:
    """The linear layers of `matrix` by name; its parts are removed from `tensors`, dtypes and shapes checked.

    Raises:
        InconsistentCheckpoint: a layer is there dense as well, or a part has another dtype or shape.
        IncompleteCheckpoint: a part is missing.
        UnsupportedSpec: a shape or grid that is read in two ways.
    """
    for slot in matrix.slots:
        if slot.name in tensors:
            raise InconsistentCheckpoint(f"{where}: {slot.name} is there dense and quantized")
    check_shape(matrix, grid, where=f"{where}: ")
    scales = tensors.get(f"{matrix.name}.{matrix.target.scales}")
    spec = replace(grid, scale_dtype="bfloat16") if scales is not None and scales.dtype == BFLOAT16 else grid
    rows, cols = matrix.shape
    parts = taken_parts(
        tensors, matrix.name, matrix.parts(spec), where=where, grid_name=f"{NAME} {spec} of {rows} x {cols}"
    )
    start = 0
    for slot in matrix.slots:
        yield slot.name, _view(matrix, slot, spec, parts, start)
        start += slot.shape[0]


def _view(
    matrix: Matrix, slot: TensorSlot, spec: AffineGroups, parts: Mapping[str, TensorView], start: int
) -> QuantizedView:
    rows, cols = slot.shape

    def read() -> QuantizedTensor:
        scale = permuted_scales(parts[matrix.target.scales].read())
        scale = np.ascontiguousarray(scale[:, start : start + rows].T)
        codes = _codes(parts[matrix.target.words], start, rows)
        return named_tensor(slot.name, spec, codes, scale, np.full(scale.shape, spec.midpoint, np.uint8))

    return QuantizedView(slot.name, (rows, cols), spec, read)


def _codes(words: TensorView, start: int, rows: int) -> np.ndarray:
    """Codes (rows, cols) of the layer that begins at row `start` of the matrix."""
    first, last = start // RUN * RUN, -(-(start + rows) // RUN) * RUN
    codes = np.empty((rows, TILE * words.rows), np.uint8)
    column = 0
    for tiles in words.chunks():
        unpacked = unpack_marlin(tiles[:, 2 * first : 2 * last])[start - first : start - first + rows]
        codes[:, column : column + unpacked.shape[1]] = unpacked
        column += unpacked.shape[1]
    return codes
