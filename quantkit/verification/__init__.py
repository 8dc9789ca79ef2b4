"""The proof: golden files, the steps of `verify`, metrics, reports, and the engines that are asked.

It imports everything below it and reaches exporters and runtimes through `registry` only. It and `pipeline` do not know
each other.
"""
