"""Mixtures that are chosen: of the types that a container has for every weight those that lose least at a given size.

`size.py` is what a user asks for, `losses.py` measures what every candidate costs the predictions, `knapsack.py` chooses
among them by their bytes, `mixture.py` does all of it for one container and tells what was chosen.
"""
