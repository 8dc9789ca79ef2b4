"""Quantization runs whose weights are trained before they are written."""
