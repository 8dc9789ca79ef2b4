"""What `benchmarks/sparse_scaling.py` measures, in a process of its own for each measurement."""
