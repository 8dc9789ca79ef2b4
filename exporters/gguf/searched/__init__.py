"""What `--algorithm searched` writes: ggml's types by a better search, without any text. Nothing but weights is read.

Scales and minimums are searched on the grid that the file can hold, super-blocks as a whole (`with_minimum.py`,
`about_zero.py`). What an error costs is told by the inputs that the weights before a layer let expect, those of tokens
drawn at random (`inputs.py`); by how these go together, each column's error is made up for by the columns behind it
(`guides.py`, `feedback.py`). `quantizer.py` puts it together.
"""
