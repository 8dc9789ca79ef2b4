"""Inference engines, one per file; see `quantkit.protocols.Runtime`."""
