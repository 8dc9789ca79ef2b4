"""Schemes, one per file: how the codes of a weight become its values; see `quantkit.tensors.scheme.Scheme`.

A scheme imports only `errors` and what else lies in `tensors`; the file's name is the scheme's name, its class stands
in `SCHEME`.
"""
