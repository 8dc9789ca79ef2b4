"""Calibration text that the model writes itself: bundled openings, generation, loops, and what all of it takes.

It may import what `quantkit.calibration` may, and of that the options alone.
"""
