"""Quantization methods, one per file; see `quantkit.protocols.Method`.

A method imports `solver` and what lies below it, and no other method.
"""
