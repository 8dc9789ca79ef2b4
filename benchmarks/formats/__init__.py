"""Ours beside the engines' own tools, container by container: MLX, ONNX Runtime, OpenVINO."""
