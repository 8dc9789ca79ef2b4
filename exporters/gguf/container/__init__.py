"""The GGUF container byte by byte: header, values, tensor infos and the parts of a split file; nothing of models.

It imports errors, `quantkit.files`, and ggml's block types (`quantkit.exporters.gguf.blocks`).
"""
