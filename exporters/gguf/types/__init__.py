"""Block types whose scales are quantized themselves, or whose codes stand in a table: their bytes and their values.

The simpler ones, of which every code is a multiple of a float16 scale, are in `quantkit.exporters.gguf.blocks`.
"""
