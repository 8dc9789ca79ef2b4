"""Operators that arrange values, pick some of them, or make them from shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from quantkit.errors import MalformedFile
from quantkit.runtimes.onnx_numpy.call import Call, Operators, allow, axes_of, axis_of

CONSTANTS: Mapping[str, type | None] = {
    "value": None,
    "value_int": np.int64,
    "value_ints": np.int64,
    "value_float": np.float32,
    "value_floats": np.float32,
}
"""Attributes of which one is a constant's value, and the dtypes that they have."""


def _shape(call: Call) -> list[np.ndarray]:
    """The lengths of the axes from `start` to `end`, as Python slices them."""
    shape = call.value(0).shape
    end = call.attribute("end")
    found = shape[call.integer("start", 0) : end if isinstance(end, int) else None]
    return [np.array(found, np.int64)]


def _size(call: Call) -> list[np.ndarray]:
    return [np.array(call.value(0).size, np.int64)]


def _reshape(call: Call) -> list[np.ndarray]:
    """To the lengths asked for: 0 = as it was, unless `allowzero`; one of them may be -1 = what is left."""
    value, wanted = call.value(0), call.integers(1)
    if not call.integer("allowzero", 0):
        if any(not length and index >= value.ndim for index, length in enumerate(wanted)):
            raise MalformedFile(f"it keeps an axis that a value of the shape {list(value.shape)} does not have")
        wanted = [value.shape[index] if length == 0 else length for index, length in enumerate(wanted)]
    return [value.reshape(wanted)]


def _transpose(call: Call) -> list[np.ndarray]:
    value, order = call.value(0), call.numbers("perm")
    return [np.transpose(value, order)]


def _concat(call: Call) -> list[np.ndarray]:
    values = call.values()
    axis = axis_of(call.integer("axis"), values[0].ndim)
    if len({value.dtype for value in values}) > 1:
        raise MalformedFile(f"its inputs are {' and '.join(str(value.dtype) for value in values)}")
    allow([sum(value.size for value in values)], values[0].dtype)
    return [np.concatenate(values, axis)]


def _slice(call: Call) -> list[np.ndarray]:
    """Python's slices, with ends that lie outside cut off."""
    value, starts, ends = call.value(0), call.integers(1), call.integers(2)
    axes = call.integers(3) if call.optional(3) is not None else list(range(len(starts)))
    steps = call.integers(4) if call.optional(4) is not None else [1] * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps) or not all(steps):
        raise MalformedFile(f"its starts, ends, axes and steps are {starts}, {ends}, {axes} and {steps}")
    index = [slice(None)] * value.ndim
    for axis, start, end, step in zip(axes_of(axes, value.ndim), starts, ends, steps, strict=True):
        length = value.shape[axis]
        # An end before the first element, walked to backwards, has no number in Python but None.
        stop = None if step < 0 and end + length < 0 else end
        index[axis] = slice(start, stop, step)
    return [value[tuple(index)]]


def _split(call: Call) -> list[np.ndarray]:
    value = call.value(0)
    axis = axis_of(call.integer("axis", 0), value.ndim)
    count, length = call.attribute("num_outputs", call.outputs), value.shape[axis]
    if call.optional(1) is not None:
        sizes = call.integers(1)
    else:
        part = -(-length // call.outputs)
        sizes = [part] * (call.outputs - 1) + [length - part * (call.outputs - 1)]
    if count != call.outputs or len(sizes) != call.outputs or sum(sizes) != length or min(sizes) < 0:
        raise MalformedFile(f"it splits an axis of {length} into {sizes}, for {call.outputs} outputs")
    return list(np.split(value, np.cumsum(sizes[:-1], dtype=np.int64), axis))


def _squeeze(call: Call) -> list[np.ndarray]:
    value = call.value(0)
    if call.optional(1) is None:
        return [np.squeeze(value)]
    return [np.squeeze(value, axes_of(call.integers(1), value.ndim))]


def _unsqueeze(call: Call) -> list[np.ndarray]:
    value, axes = call.value(0), call.integers(1)
    return [np.expand_dims(value, axes_of(axes, value.ndim + len(axes)))]


def _expand(call: Call) -> list[np.ndarray]:
    value = call.value(0)
    shape = np.broadcast_shapes(value.shape, tuple(call.integers(1)))
    allow(shape, value.dtype)
    return [np.broadcast_to(value, shape)]


def _tile(call: Call) -> list[np.ndarray]:
    value, repeats = call.value(0), call.integers(1)
    if len(repeats) != value.ndim:
        raise MalformedFile(f"it repeats {len(repeats)} of {value.ndim} axes")
    allow([length * count for length, count in zip(value.shape, repeats, strict=True)], value.dtype)
    return [np.tile(value, repeats)]


def _range(call: Call) -> list[np.ndarray]:
    start, limit, delta = (call.value(index) for index in range(3))
    if {start.size, limit.size, delta.size} != {1} or not delta.all():
        raise MalformedFile("its start, limit and step are not three numbers, or the step is 0")
    first, last, step = (value.item() for value in (start, limit, delta))
    count = max(0, math.ceil((last - first) / step))
    allow([count], start.dtype)
    return [(first + step * np.arange(count)).astype(start.dtype)]


def _constant(call: Call) -> list[np.ndarray]:
    """Its value, which the evaluator has read where it is a tensor."""
    found = [
        np.asarray(value, dtype)
        for name, dtype in CONSTANTS.items()
        if (value := call.attribute(name)) is not None and not isinstance(value, str)
    ]
    if len(found) != 1:
        raise MalformedFile("it has no value of numbers")
    return found


def _constant_of_shape(call: Call) -> list[np.ndarray]:
    shape, value = call.integers(0), call.attribute("value")
    filler = value if isinstance(value, np.ndarray) else np.zeros(1, np.float32)
    if filler.size != 1:
        raise MalformedFile(f"it fills with {filler.size} values")
    allow(shape, filler.dtype)
    return [np.full(shape, filler.reshape(-1)[0], filler.dtype)]


def _gather(call: Call) -> list[np.ndarray]:
    """Elements of an axis by their numbers, which count from its end where they are negative."""
    value, indices = call.value(0), call.value(1)
    axis = axis_of(call.integer("axis", 0), value.ndim)
    check_indices(indices, value.shape[axis])
    allow((*value.shape[:axis], *indices.shape, *value.shape[axis + 1 :]), value.dtype)
    return [np.take(value, indices, axis)]


def check_indices(indices: np.ndarray, length: int) -> None:
    """Raise `MalformedFile` for an index outside an axis of `length`."""
    if indices.dtype.kind not in "iu":
        raise MalformedFile(f"its indices are {indices.dtype}")
    if indices.size and not (-length <= indices.min() and indices.max() < length):
        raise MalformedFile(f"an index lies outside an axis of {length}")


def _scatter_nd(call: Call) -> list[np.ndarray]:
    """A copy in which the places that the last axis of the indices names hold the updates."""
    value, indices, updates = call.value(0).copy(), call.value(1), call.value(2)
    if call.attribute("reduction", "none") != "none" or not indices.ndim or indices.shape[-1] > value.ndim:
        raise MalformedFile("it combines what it scatters, or names no places")
    for axis in range(indices.shape[-1]):
        check_indices(indices[..., axis], value.shape[axis])
    value[tuple(np.moveaxis(indices, -1, 0))] = updates
    return [value]


def _trilu(call: Call) -> list[np.ndarray]:
    value, offset = call.value(0), call.optional(1)
    diagonal = 0 if offset is None else int(offset.reshape(-1)[0])
    return [np.triu(value, diagonal) if call.integer("upper", 1) else np.tril(value, diagonal)]


def _identity(call: Call) -> Sequence[np.ndarray]:
    return [call.value(0)]


SHAPES: Operators = {
    ("", name): operator
    for name, operator in {
        "Shape": _shape,
        "Size": _size,
        "Reshape": _reshape,
        "Transpose": _transpose,
        "Concat": _concat,
        "Slice": _slice,
        "Split": _split,
        "Squeeze": _squeeze,
        "Unsqueeze": _unsqueeze,
        "Expand": _expand,
        "Tile": _tile,
        "Range": _range,
        "Constant": _constant,
        "ConstantOfShape": _constant_of_shape,
        "Gather": _gather,
        "ScatterND": _scatter_nd,
        "Trilu": _trilu,
        "Identity": _identity,
    }.items()
}
