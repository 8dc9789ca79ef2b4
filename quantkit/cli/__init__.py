"""The command line: one file per verb, each of which parses, calls one function of the public API, and prints."""
