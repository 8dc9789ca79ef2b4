"""One quantization run: recipe, plan, the stream of blocks, and resuming after a kill.

It imports everything below it and reaches methods, exporters and runtimes through `registry` only. It and
`verification` do not know each other.
"""
