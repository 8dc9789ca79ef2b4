"""What a model does on text: calibration sequences, activations, statistics of inputs, Fisher information.

It imports `text` and what lies below it. It knows nothing of grids that are being searched; that is the solver's.
"""
