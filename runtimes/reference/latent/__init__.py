"""MiniCPM3 in numpy: everything is the reference's, but for latent attention, see `forward.py`."""
