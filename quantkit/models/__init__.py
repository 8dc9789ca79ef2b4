"""What a model is: config to `ModelSpec`, its tensors, folding, the torch modules, and the checkpoint on disk.

It imports `files` and what lies below it. It knows no container but the dense Hugging Face folder that models come in.
"""
