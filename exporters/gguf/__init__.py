"""GGUF: single files for llama.cpp. `exporter.py` holds the plug-in; blocks, types, header and reader are its parts."""
