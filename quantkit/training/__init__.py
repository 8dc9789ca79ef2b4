"""Recovery by training: what quantization lost, learned back with the codes in the forward pass.

It may import everything up to `calibration`; torch is imported where it is used.
"""
