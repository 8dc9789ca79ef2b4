"""Verification of sparse attention (InfLLM-v2): `proof.py` goes through the steps, `facts.py` holds what the original
does on a long prompt, `choices.py` compares which blocks were chosen, `needle.py` plants a key in a long context.
"""
