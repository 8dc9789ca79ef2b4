"""The one real language model that a package index holds, for benchmarks and for tests that are run on request."""
