"""Quantization methods, one per file; see `quantkit.protocols.Method`."""
