"""The model card: what README.md says at its head about a model, as keys of a GGUF file and back.

`quantkit.models.layouts.front_matter` reads and writes the head, `entries.py` the keys.
May import what every plug-in may.
"""
