"""Containers, one per file; see `quantkit.protocols.Exporter`."""
