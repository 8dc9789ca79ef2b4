"""The graph: `decoder.py` is the model, in the operators of `contrib.py` or `standard.py`, built by `builder.py`."""
