"""MLX's folder: `exporter.py` has the layout, `affine.py` and `floats.py` the weights, `settings.py` the config."""
