"""tokenizer.json: its parts, what transformers makes of them, what llama.cpp calls them, and encoding by them.

The `tokenizers` library only meets what the strict readers here let pass. It imports the modules of `quantkit.text`
that read the small files around a tokenizer, and what lies below `text`.
"""
