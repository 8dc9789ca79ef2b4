"""The mathematics that methods share: search of grids, error feedback, descent, compensation, smoothing.

It imports `protocols`, `registry`, `calibration` and what lies below them. It works on arrays and schemes
and opens no file.
"""
