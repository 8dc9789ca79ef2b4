"""compressed-tensors folders, which `quantize` writes. `exporter.py` holds the plug-in."""
