"""The verbs: one file each, which parses, calls one function of the public interface and prints."""
