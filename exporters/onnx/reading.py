"""Reading a folder that quantkit wrote: the graph must be the one that the folder's config and its own metadata make.

So nothing in a graph is trusted that could compute something else: it is written anew and compared, node by node.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantkit.errors import InconsistentCheckpoint, MalformedFile
from quantkit.exporters.onnx.elements import ARRAYS
from quantkit.exporters.onnx.external import open_data
from quantkit.exporters.onnx.graph.builder import check_package
from quantkit.exporters.onnx.graph.decoder import decoder
from quantkit.exporters.onnx.layouts import Quantized
from quantkit.exporters.onnx.metadata import metadata, read_grids, read_settings
from quantkit.exporters.onnx.places import ROTATION, Extent, Place, Places, places
from quantkit.exporters.onnx.rotation import tables
from quantkit.exporters.onnx.settings import Settings, factor_lists
from quantkit.files.member import read_member
from quantkit.files.source_file import SourceFile
from quantkit.models.spec import EMBEDDING, HEAD, ModelSpec
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.views import QuantizedView, TensorView, Weight

if TYPE_CHECKING:
    import onnx

GRAPH_NAME = "model.onnx"
MAX_GRAPH_BYTES = 32 << 20
TOLERANCE = {"f32": 2e-7, "f16": 1e-3}
"""By how much a cosine of another machine may differ, times the attention factor."""


def read_graph(path: Path, spec: ModelSpec) -> tuple[Settings, dict[str, Weight]]:
    """The settings of the graph in the folder `path`, and its weights, which are read through their views.

    Raises:
        MalformedFile: the file is no ONNX graph, or its metadata makes no sense.
        UnsupportedSpec: the graph is not quantkit's.
        InconsistentCheckpoint: a node or tensor differs from what config.json and the metadata make it.
        Others: see `open_data`.
    """
    check_package()
    where = str(path / GRAPH_NAME)
    model = _parsed(read_member(path, GRAPH_NAME, MAX_GRAPH_BYTES), where)
    said = _metadata(model, where)
    settings = read_settings(said, spec, where)
    inputs, each = (3, 4) if settings.sparse else (2, 2)
    if len(model.graph.input) != inputs + each * spec.num_hidden_layers:
        raise InconsistentCheckpoint(
            f"{where} has {len(model.graph.input)} inputs, {spec.num_hidden_layers} layers have {each} each, and "
            f"{inputs} more",
            hint="config.json and the graph are of different models",
        )
    grids = read_grids(said, spec, where)
    plan = places(spec, grids, settings)
    file = open_data(path, model.graph.initializer, plan.size)
    _check_same(model, decoder(spec, plan, settings, metadata(settings, grids)), where)
    _check_rotation(file, plan, spec, settings)
    weights: dict[str, Weight] = {slot.name: _view(file, plan, slot.name) for slot in spec.slots()}
    return settings, weights


def _parsed(data: bytes, where: str) -> onnx.ModelProto:
    import onnx  # noqa: PLC0415 - other containers do without it

    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:  # of protobuf, which has several implementations and is no dependency of its own
        raise MalformedFile(f"{where} is no ONNX graph, or is cut off: {error}"[:300]) from None
    if not model.graph.node:
        raise MalformedFile(f"{where} holds no graph")
    return model


def _metadata(model: onnx.ModelProto, where: str) -> dict[str, str]:
    """What the graph says of itself; protobuf gives text that is not UTF-8 as bytes."""
    said = {entry.key: entry.value for entry in model.metadata_props}
    if not all(isinstance(text, str) for entry in said.items() for text in entry):
        raise MalformedFile(f"{where}: its metadata is not UTF-8")
    return said


def _check_same(found: onnx.ModelProto, expected: onnx.ModelProto, where: str) -> None:
    if found.SerializeToString(deterministic=True) == expected.SerializeToString(deterministic=True):
        return
    hint = "config.json and the graph are of different models, or another program or version wrote the graph"
    for kind in ("initializer", "input", "output", "node", "value_info"):
        ours, theirs = getattr(expected.graph, kind), getattr(found.graph, kind)
        for one, other in zip(ours, theirs, strict=False):
            if one != other:
                raise InconsistentCheckpoint(f"{where}: {kind} {other.name[:80]!r} is not what it should be", hint=hint)
        if len(ours) != len(theirs):
            raise InconsistentCheckpoint(f"{where} has {len(theirs)} x {kind}, should have {len(ours)}", hint=hint)
    raise InconsistentCheckpoint(f"{where} says something else beside its graph than it should", hint=hint)


def _check_rotation(file: SourceFile, plan: Places, spec: ModelSpec, settings: Settings) -> None:
    """Cosines and sines may differ in their last bit between machines."""
    allowed = TOLERANCE[settings.type] * max(1.0, spec.rope.attention_factor)
    for prefix, length in factor_lists(spec, settings.context).items():
        for kind, table in tables(spec, settings.element, settings.context, length).items():
            name = f"{ROTATION}.{prefix}{kind}"
            found = _array(file, plan.rotation[name])
            with np.errstate(invalid="ignore"):
                near = np.abs(found.astype(np.float32) - table.astype(np.float32)) <= allowed
            if not near.all():
                raise InconsistentCheckpoint(f"{file.path}: the table {name!r} is not that of config.json's rotation")


def _bytes(file: SourceFile, extent: Extent) -> np.ndarray:
    return file.read(extent.offset, extent.size)


def _array(file: SourceFile, extent: Extent) -> np.ndarray:
    return _bytes(file, extent).view(ARRAYS[extent.element]).reshape(extent.shape)


def _view(file: SourceFile, plan: Places, name: str) -> Weight:
    place = plan.weights[name]
    if not isinstance(place.layout, Quantized):
        return _dense_view(file, name, place.extents[""])
    copy = plan.weights.get(HEAD) if name == EMBEDDING else None
    second = copy if copy is not None and copy.source == EMBEDDING else None

    def read() -> QuantizedTensor:
        tensor = _tensor(file, place)
        if second is not None and not _same(tensor, _tensor(file, second)):
            raise InconsistentCheckpoint(f"{file.path}: the head differs from the embedding, which it is tied to")
        return tensor

    return QuantizedView(name, place.layout.shape, place.layout.scheme, read)


def _tensor(file: SourceFile, place: Place) -> QuantizedTensor:
    layout: Any = place.layout
    parts: Mapping[str, np.ndarray] = {part: _bytes(file, extent) for part, extent in place.extents.items()}
    tensor: QuantizedTensor = layout.tensor(place.name, parts)
    return tensor


def _same(one: QuantizedTensor, other: QuantizedTensor) -> bool:
    return np.array_equal(one.codes, other.codes) and all(
        np.array_equal(one.arrays[k], other.arrays[k]) for k in one.arrays
    )


def _dense_view(file: SourceFile, name: str, extent: Extent) -> TensorView:
    width = extent.size // extent.shape[0]

    def fetch(start: int, stop: int) -> np.ndarray:
        data = file.read(extent.offset + start * width, (stop - start) * width)
        return data.view(ARRAYS[extent.element]).reshape(stop - start, *extent.shape[1:])

    return TensorView(name, ARRAYS[extent.element], extent.shape, fetch)
