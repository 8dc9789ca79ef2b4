"""Llama: MiniCPM5, two sizes of BitCPM, and what every other family folds into.

Source: transformers `LlamaConfig` (defaults), `modeling_llama.py`.
"""

from __future__ import annotations

from quantkit.models.architectures._dense_decoder import DenseDecoder

ARCHITECTURE = DenseDecoder(
    name="llama",
    summary="LlamaForCausalLM (MiniCPM5)",
    classes=("LlamaForCausalLM",),
    model_types=("llama",),
)
