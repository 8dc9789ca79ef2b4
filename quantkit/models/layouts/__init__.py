"""How the files of a model's folder lie: shards, small files, tensors of the model, and what is no such folder.

Imports nothing above `quantkit.files` but the rest of `quantkit.models`.
"""
