"""The oracle: the family's forward pass in plain numpy. `runtime.py` holds the plug-in, `forward.py` the model in the
order of its formulas, `formulas.py` each of them; `weights.py` reads.
"""
