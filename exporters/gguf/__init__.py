"""GGUF: single files for llama.cpp. `exporter.py` holds the plug-in; blocks, choice of types, tensors, metadata and
vocabulary are its parts. `container/` knows the bytes of the file and nothing of models.
"""
