"""llama.cpp's file types: which block type every tensor of a model gets in a file that is called q4_k_m.

`file_types.py` names them, `rules.py` is `llama-quantize`'s choice of types as a function, `request.py` is what a user
asks for, and whether a model can be had so.
"""
