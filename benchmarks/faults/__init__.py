"""Seeded faults: wrong artifacts of every kind, made from honest ones, each with the steps of `verify` that must catch it.

`fault.py` says what a fault is, `workbench.py` makes artifacts, `catalog.py` lists every fault; the other modules hold
the faults themselves, one kind each. Nothing here is imported by quantkit.
"""
