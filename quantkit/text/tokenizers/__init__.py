"""tokenizer.json: its parts, what transformers makes of them, what llama.cpp calls them, and encoding by them.

Read by the strict readers of `quantkit.text`; the `tokenizers` library only meets what they let pass. It imports
`quantkit.text.tokenizer_files` and what lies below `text`.
"""
