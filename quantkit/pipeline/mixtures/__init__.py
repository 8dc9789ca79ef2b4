"""Mixtures that are chosen: for every weight one of the types that a container has, to lose least at a given size.

`size.py` is what a user asks for. `losses.py` measures what every candidate costs the predictions, `knapsack.py`
chooses by bytes, `mixture.py` on those of the finished files, `search.py` does all of it for one model. `grids.py` is
what `quantize` can choose from; GGUF's exporter says so itself. `runs.py` has the whole jobs.
"""
