"""llama.cpp's importance matrices: mean squares of what every column of a matrix is multiplied by.

`reading.py` reads the GGUF form, `legacy.py` the one before it; `matrix.py` tells what of it llama-quantize would read;
`writing.py` writes the GGUF form.
"""
