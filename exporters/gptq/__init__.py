"""GPTQ folders, versions 1 and 2. `exporter.py` holds the plug-in."""
