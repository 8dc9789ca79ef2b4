"""Nodes, constants and external tensors of an ONNX graph, put together with the package `onnx`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from quantkit.errors import MissingDependency
from quantkit.exporters.onnx.elements import BOOL, FLOAT, INT64, Element
from quantkit.exporters.onnx.places import DATA_NAME, Extent

if TYPE_CHECKING:
    import onnx

CONTRIB_DOMAIN = "com.microsoft"
PRODUCER = "quantkit"
IR_VERSIONS = {21: 10, 25: 13}
"""The version of the file's format that a version of the operators came with."""


def check_package() -> None:
    """Raise `MissingDependency` where the package `onnx` is not installed."""
    try:
        import onnx  # noqa: F401, PLC0415 - other containers do without it
    except ImportError as error:
        raise MissingDependency(
            f"ONNX graphs need the package onnx: {error}", hint="pip install 'quantkit[onnx]'"
        ) from None


class Graph:
    """A graph that grows. Every method that adds something returns the name of the value that it makes."""

    def __init__(self, element: Element) -> None:
        self.element = element
        self._nodes: list[onnx.NodeProto] = []
        self._count = 0
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._stages: list[onnx.ValueInfoProto] = []
        self._shapes: dict[int, str] = {}

    def node(
        self,
        kind: str,
        inputs: Sequence[str],
        output: str | None = None,
        *,
        domain: str = "",
        **attributes: Any,  # noqa: ANN401 - whatever the operator has
    ) -> str:
        """An operator with one output, called `output` or after the operator and the nodes before it."""
        name = output or f"{kind}_{self._count}"
        self.nodes(kind, inputs, [name], domain=domain, **attributes)
        return name

    def nodes(
        self,
        kind: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        *,
        domain: str = "",
        **attributes: Any,  # noqa: ANN401 - whatever the operator has
    ) -> None:
        """An operator with several outputs."""
        from onnx import helper  # noqa: PLC0415 - other containers do without it

        name = f"{kind}/{self._count}"
        self._count += 1
        self._nodes.append(
            helper.make_node(kind, list(inputs), list(outputs), name, domain=domain or None, **attributes)
        )

    def float32(self, x: str) -> str:
        """`x`, of the graph's element, in float32."""
        return x if self.element == FLOAT else self.node("Cast", (x,), to=FLOAT.code)

    def narrowed(self, x: str) -> str:
        """Float32 `x` in the graph's element."""
        return x if self.element == FLOAT else self.node("Cast", (x,), to=self.element.code)

    def constant(self, values: np.ndarray) -> str:
        """A small tensor that lies in the graph itself; equal ones are there once."""
        from onnx import numpy_helper  # noqa: PLC0415 - other containers do without it

        spelled = "_".join(map(str, values.reshape(-1).tolist()))
        name = f"{values.dtype.name}{list(values.shape)}:{spelled}"
        if name not in self._initializers:
            self._initializers[name] = numpy_helper.from_array(values, name)
        return name

    def integers(self, *values: int) -> str:
        """A constant int64 vector."""
        return self.constant(np.array(values, np.int64))

    def integer(self, value: int) -> str:
        """A constant int64 scalar."""
        return self.constant(np.array(value, np.int64))

    def number(self, value: float, dtype: np.dtype) -> str:
        """A constant float scalar."""
        return self.constant(np.array(value, dtype))

    def external(self, name: str, extent: Extent, shape: Sequence[int] | None = None) -> str:
        """A tensor in the data file, in `shape` if that is another one for the same bytes."""
        if name not in self._initializers:
            import onnx  # noqa: PLC0415 - other containers do without it

            entries = {"location": DATA_NAME, "offset": str(extent.offset), "length": str(extent.size)}
            self._initializers[name] = onnx.TensorProto(
                name=name,
                data_type=extent.element.code,
                dims=tuple(extent.shape if shape is None else shape),
                data_location=onnx.TensorProto.EXTERNAL,
                external_data=[onnx.StringStringEntryProto(key=key, value=value) for key, value in entries.items()],
            )
        return name

    def dense(self, x: str, name: str, extent: Extent) -> str:
        """x [batch, sequence, K] times a transposed matrix of the data file, [N, K]."""
        rows, cols = extent.shape
        flat = self.node("Reshape", (x, self.integers(-1, cols)))
        product = self.node("Gemm", (flat, self.external(name, extent)), transB=1)
        if rows not in self._shapes:
            batch = self.node("Shape", ("input_ids",))
            self._shapes[rows] = self.node("Concat", (batch, self.integers(rows)), axis=0)
        return self.node("Reshape", (product, self._shapes[rows]))

    def either(self, condition: str, one: Sequence[str], other: Sequence[str], like: Extent) -> list[str]:
        """`one` where `condition` holds, else `other`: tensors of the same type and shape."""
        from onnx import helper  # noqa: PLC0415 - other containers do without it

        outputs = [f"If_{self._count}.{index}" for index in range(len(one))]
        branches = {}
        for branch, values in (("then_branch", one), ("else_branch", other)):
            results = [f"{branch}.{name}" for name in outputs]
            nodes = [helper.make_node("Identity", [x], [y], y) for x, y in zip(values, results, strict=True)]
            described = [_described(name, like.element, like.shape) for name in results]
            branches[branch] = helper.make_graph(nodes, branch, [], described)
        self.nodes("If", (condition,), outputs, **branches)
        return outputs

    def branched(self, condition: str, one: Callable[[], str], other: Callable[[], str], element: Element) -> str:
        """What `one` adds where `condition` holds, else what `other` adds: values of a type, and of any shape."""
        branches = {}
        for branch, make in (("then_branch", one), ("else_branch", other)):
            branches[branch] = self._inner(branch, (), lambda make=make: (make(),), (element,))  # type: ignore[misc]
        return self.node("If", (condition,), **branches)

    def repeated(self, count: str, make: Callable[[str], str], element: Element) -> str:
        """What `make` adds, so many times, joined along a new first axis; it is told the number of the time, from 0."""
        index, going = f"time_{self._count}", f"going_{self._count}"

        def step() -> tuple[str, str]:
            return self.node("Identity", (going,)), make(index)

        given = (_described(index, INT64, ()), _described(going, BOOL, ()))
        body = self._inner("body", given, step, (BOOL, element))
        return self.node("Loop", (count, ""), body=body)

    def _inner(
        self,
        name: str,
        inputs: Sequence[onnx.ValueInfoProto],
        make: Callable[[], Sequence[str]],
        elements: Sequence[Element],
    ) -> onnx.GraphProto:
        """The graph of what `make` adds, which reads what is around it; its constants lie around it too."""
        from onnx import helper  # noqa: PLC0415 - other containers do without it

        around, self._nodes = self._nodes, []
        outputs = make()
        nodes, self._nodes = self._nodes, around
        described = [
            helper.make_tensor_value_info(output, element.code, None)
            for output, element in zip(outputs, elements, strict=True)
        ]
        return helper.make_graph(nodes, name, list(inputs), described)

    def input(self, name: str, element: Element, shape: Sequence[int | str]) -> str:
        """An input of the graph."""
        self._inputs.append(_described(name, element, shape))
        return name

    def output(self, name: str, element: Element, shape: Sequence[int | str]) -> None:
        """A value that the graph gives."""
        self._outputs.append(_described(name, element, shape))

    def stage(self, name: str, element: Element, shape: Sequence[int | str]) -> None:
        """A value within the graph that a tool may ask for, so that its type and shape are said."""
        self._stages.append(_described(name, element, shape))

    def model(self, opset: int, metadata: Mapping[str, str]) -> onnx.ModelProto:
        """The whole, for readers of the operator set `opset`; the domain of onnxruntime is named where it is used."""
        from onnx import helper  # noqa: PLC0415 - other containers do without it

        graph = helper.make_graph(
            self._nodes,
            "decoder",
            self._inputs,
            self._outputs,
            list(self._initializers.values()),
            value_info=self._stages,
        )
        imports = [helper.make_opsetid("", opset)]
        if any(node.domain == CONTRIB_DOMAIN for node in self._nodes):
            imports.append(helper.make_opsetid(CONTRIB_DOMAIN, 1))
        model = helper.make_model(graph, opset_imports=imports, producer_name=PRODUCER, ir_version=IR_VERSIONS[opset])
        helper.set_model_props(model, dict(metadata))
        return model


def _described(name: str, element: Element, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    from onnx import helper  # noqa: PLC0415 - other containers do without it

    return helper.make_tensor_value_info(name, element.code, list(shape))
