"""What MLX computes with an MLX folder, in numpy: `container.py` reads the bytes, `forward.py` computes."""
