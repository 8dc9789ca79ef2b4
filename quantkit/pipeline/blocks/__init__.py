"""The blocks of a model, quantized one after the other: the stream, layers that share inputs, and folds left out.

They may import what the pipeline may, and nothing else of it but resumption and the work of a run.
"""
