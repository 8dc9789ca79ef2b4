"""ONNX graphs in numpy: the operators that a decoder is made of, each computed by its definition.

It reads the protobuf and the file beside it by itself (`wire.py`, `graph.py`, `stored_tensors.py`), without the package
`onnx` and without the exporter's code, so that file, exporter and engine can accuse one another. `evaluator.py` takes
the nodes in order; the operators lie in `arithmetic.py`, `shapes.py`, `reductions.py`, `quantized.py` (weights of a few
bits) and `attention.py`, whose functions are given a `call.py`. Slow and exact: float32, weights dequantized as they
are used.

May import what every plug-in may: the core below pipeline, and modules of the room that begin with `_`.
"""
