"""Damaged files by the ten thousand: whatever stands in a model's files, quantkit answers or refuses in a line.

`values.py` holds odd values, `json_mutants.py` and `byte_mutants.py` damage a file, `subjects.py` says which files
there are and in which models they lie, `trial.py` does with each what a user would do, `workers.py` runs trials in
processes that are watched, `__main__.py` is the command. May import quantkit, and nothing from the other benchmarks.
"""
