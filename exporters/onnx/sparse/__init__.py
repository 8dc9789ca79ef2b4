"""InfLLM-v2 in operators of ONNX alone, as Hugging Face's code of MiniCPM4.1 attends: `ModelSpec.sparse` in a graph.

`memory.py` says what is remembered and writes into it, `selection.py` chooses blocks, `attention.py` attends to them or
to everything, `tiles.py` takes tokens a few at a time, `operators.py` makes a decoder's attention of it. Letters: T new
tokens, t of a tile, H heads, G key-value heads, R = H / G, D channels of a head, n means of keys, B blocks.
"""
