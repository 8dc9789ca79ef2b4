"""Seeded faults: wrong artifacts of every kind, made from honest ones, with the steps of `verify` that must catch them.

`fault.py` says what a fault is, `workbench.py` makes artifacts, `catalog.py` lists every fault; the other modules hold
the faults themselves, one kind each. Nothing here is imported by quantkit.
"""
