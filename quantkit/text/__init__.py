"""Text and token ids: tokenizer, vocabulary, SentencePiece's file, chat templates.

It imports `models` and `artifacts` and what lies below them.
"""
