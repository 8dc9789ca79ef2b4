"""The model families, one file each: `minicpm.py` is "minicpm" in `ModelSpec.architecture`.

A file's `ARCHITECTURE` follows `quantkit.models.spec.Architecture`. Modules whose names begin with `_` are what several
families share. They import what `quantkit.models` imports, and no other family.
"""
