"""How large the inputs of a model's matrices are, column by column: what importance matrices are made of.

`measured.py` alone does without torch.
"""
