"""ggml's own quantizers, byte for byte: what `--algorithm reference` writes, with importance weights and without.

Everything is float32 and every sum goes through its terms in ggml's order, which is that of the weights: arrays have
the weights of a sub-block along their first axis, and sub-blocks along the last. ggml's library is built without fused
multiply-add. Source: `quantize_row_*_ref` and `quantize_row_*_impl` of `ggml-quants.c`; where releases differ, the
xllamacpp package of October 2026 counts.
"""
