"""Text and token ids: tokenizer, vocabulary, chat templates, end tokens, and all that the files beside the weights say.

It imports `models` and `artifacts` and what lies below them.
"""
