"""How an output comes into being: files are staged, checked, locked and renamed; manifests; the journal of a run.

It imports `files` and what lies below it, and not `models`: what is written may be any files.
"""
