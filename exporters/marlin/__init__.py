"""Marlin folders for CPM.cu and IST-DASLab's kernel. `exporter.py` holds the plug-in."""
