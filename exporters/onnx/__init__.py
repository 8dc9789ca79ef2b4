"""ONNX folders, for onnxruntime and onnxruntime-genai. `exporter.py` holds the plug-in. `graph/` writes the model in
operators, `places.py` plans the data file beside it, in which a weight lies as `layouts.py` has it.
"""
