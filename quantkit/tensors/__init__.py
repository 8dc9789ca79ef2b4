"""Numbers without files: grids, quantized tensors, lazy views of weights, packing of codes, casts and rounding.

The ground floor: it imports nothing of quantkit but `errors`, `threads` and `discovery`.
"""
