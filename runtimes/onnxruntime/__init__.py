"""ONNX Runtime, the engine itself, on the CPU.

It lives in a child process: it is C++ that parses files. `session.py` asks `engine.py`, which loads the graph with the
settings that change no number: `MatMulNBits` at accuracy level 0, also those that ORT makes of `DequantizeLinear`.

May import what every plug-in may: the core below pipeline, and modules of the room that begin with `_`.
"""
