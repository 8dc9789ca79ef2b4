"""genai_config.json, by which onnxruntime-genai runs a folder as it is.

Source: onnxruntime-genai 0.18, `src/config.h`, `src/python/py/models/builders/base.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from quantkit.exporters.onnx.settings import Settings
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import ModelSpec
from quantkit.text.end_tokens import GENERATION_FILE
from quantkit.text.tokenizer_files import read_object

CONFIG_NAME = "genai_config.json"
TYPES = {"llama": "llama"}
"""Its names of architectures; any other graph of this shape is a "decoder"."""
EXACT = {"session.qdq_matmulnbits_accuracy_level": "0"}
"""What keeps the inputs of fused matrices what they are; the default rounds them to int8."""
_SAMPLING = ("do_sample", "repetition_penalty", "temperature", "top_k", "top_p")


def genai_config(model: Checkpoint, settings: Settings, graph_name: str) -> bytes:
    """The file, keys in the order of its documentation."""
    spec = model.spec
    options: dict[str, Any] = {"log_id": "onnxruntime-genai", "provider_options": []}
    if not settings.contrib:
        options |= EXACT
    eos = list(spec.eos_token_ids)
    ends = {"bos_token_id": spec.bos_token_id, "eos_token_id": eos or None, "pad_token_id": _padding(spec)}
    config = {
        "model": {
            **{key: value for key, value in ends.items() if value is not None},
            "context_length": settings.context,
            "decoder": {
                "session_options": options,
                "filename": graph_name,
                "head_size": spec.head_dim,
                "hidden_size": spec.hidden_size,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
                "num_attention_heads": spec.num_attention_heads,
                "num_hidden_layers": spec.num_hidden_layers,
                "num_key_value_heads": spec.num_key_value_heads,
            },
            "type": TYPES.get(spec.architecture, "decoder"),
            "vocab_size": spec.vocab_size,
        },
        "search": {
            "max_length": settings.context,
            "past_present_share_buffer": settings.contrib,
            **_sampling(model),
        },
    }
    return (json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _padding(spec: ModelSpec) -> int | None:
    if spec.pad_token_id is not None:
        return spec.pad_token_id
    return spec.eos_token_ids[0] if spec.eos_token_ids else spec.bos_token_id


def _sampling(model: Checkpoint) -> Mapping[str, Any]:
    """What generation_config.json says of sampling, as far as it is a number; greedy where it says nothing."""
    said = read_object(model.files, GENERATION_FILE)
    found = {key: said[key] for key in _SAMPLING if isinstance(said.get(key), (bool, int, float))}
    return {"do_sample": False, **found}
