"""Files as bytes: strict readers (safetensors, JSON, indexes), digests, and plans of files to be written.

It imports `tensors` and what lies below it. It knows no model.
"""
