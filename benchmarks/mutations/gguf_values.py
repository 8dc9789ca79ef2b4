"""GGUF files of every type, and whether what is read of one is what gguf-py reads."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np

from quantkit import BlockOptions, ExportOptions, export
from quantkit.errors import NonFiniteValues, QuantkitError
from quantkit.models.checkpoint import Checkpoint
from quantkit.tensors.views import QuantizedView

EVERY_TYPE = "types.gguf"
"""The subject of which weights are read as well."""
PLAIN = ("f32", "f16", "bf16")
PURE = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_0", "tq1_0", "tq2_0", "q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k")
PURE += ("iq4_nl", "iq4_xs", "mxfp4_moe")
HEAD = 64
UNKNOWN = "q2_0"
"""A type that gguf-py does not know: of a file that has it nothing is compared."""


def every_type(source: Path, scratch: Path) -> dict[str, bytes]:
    """A file of each type, made of the model `source`, by type."""
    files = {}
    for kind in (*PLAIN, *PURE):
        blocks = BlockOptions(algorithm="reference", pure=True) if kind in PURE else None
        out = scratch / f"{kind}.gguf"
        export("gguf", source, out, ExportOptions(type=kind, blocks=blocks), overwrite=True)
        files[kind] = out.read_bytes()
    return files


def write_source(folder: Path, files: dict[str, bytes]) -> Path:
    """A random MiniCPM of one block whose rows are whole blocks of 256, with LongRoPE; `files` are of its tokenizer."""
    from safetensors.numpy import save  # noqa: PLC0415 - needed for these subjects alone

    config = json.loads(files["config.json"])
    size, hidden, inner, factors = config["vocab_size"], 256, 256, [1 + i / 9 for i in range(HEAD // 2)]
    config |= {
        **{"architectures": ["MiniCPMForCausalLM"], "model_type": "minicpm", "hidden_size": hidden},
        **{"intermediate_size": inner, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2},
        **{"head_dim": HEAD, "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 64, "torch_dtype": "float32"},
        "rope_scaling": {
            **{"rope_type": "longrope", "long_factor": factors, "short_factor": factors},
            "original_max_position_embeddings": 256,
        },
    }
    layer, random = "model.layers.0", np.random.default_rng(0)
    shapes = {"model.embed_tokens.weight": (size, hidden), "model.norm.weight": (hidden,)}
    shapes |= {f"{layer}.{norm}.weight": (hidden,) for norm in ("input_layernorm", "post_attention_layernorm")}
    shapes |= {f"{layer}.self_attn.{name}_proj.weight": (hidden, hidden) for name in "qo"}
    shapes |= {f"{layer}.self_attn.{name}_proj.weight": (2 * HEAD, hidden) for name in "kv"}
    shapes |= {f"{layer}.mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up", "down")}
    weights = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in {**files, "config.json": json.dumps(config).encode(), "model.safetensors": save(weights)}.items():
        (folder / name).write_bytes(data)
    return folder


def check_values(checkpoint: Checkpoint) -> None:
    """Read every weight; raises AssertionError where it is not what gguf-py reads, and what reading raises."""
    known = not any(isinstance(w, QuantizedView) and w.stored_as == UNKNOWN for w in checkpoint.weights.values())
    theirs = _theirs(checkpoint.path) if known else {}
    refused: list[QuantkitError] = []
    for weight in checkpoint.weights.values():
        try:
            read = weight.read()
        except NonFiniteValues as error:  # the next may be sound, and must be right
            refused.append(error)
            continue
        ours = read.dequantized() if isinstance(weight, QuantizedView) else read.astype(np.float32)
        wanted = theirs.get(weight.name, ours if not known else np.empty(0))
        if wanted.shape != ours.shape or not np.array_equal(ours, wanted, equal_nan=True):
            raise AssertionError(f"{weight.name} is not what gguf-py reads")
    if refused:
        raise refused[0]


def _theirs(path: Path) -> dict[str, np.ndarray]:
    """Every weight by our names, float32, as gguf-py reads it."""
    from gguf import GGUFReader  # noqa: PLC0415 - a judge, not a part of quantkit

    found = {}
    with np.errstate(all="ignore"):
        reader = GGUFReader(path)
        heads = {"attn_q": "attention.head_count", "attn_k": "attention.head_count_kv"}
        for tensor in reader.tensors:
            shape = tuple(int(dim) for dim in reversed(tensor.shape))
            values = _values(tensor).reshape(shape)
            part = tensor.name.split(".")[-2]
            if part in heads:
                architecture = reader.fields["general.architecture"].contents()
                count = int(reader.fields[f"{architecture}.{heads[part]}"].contents())
                values = values.reshape(count, -1, 2, shape[1]).swapaxes(1, 2).reshape(shape)
            found[_name(tensor.name)] = values
    return found


def _values(tensor: object) -> np.ndarray:
    from gguf import quants  # noqa: PLC0415 - a judge, not a part of quantkit

    values: np.ndarray = quants.dequantize(tensor.data, tensor.tensor_type)  # type: ignore[attr-defined]
    return values


@cache
def _names() -> dict[str, str]:
    parts = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_output": "self_attn.o_proj"}
    parts |= {f"attn_{name}": f"self_attn.{name}_proj" for name in "qkv"}
    parts |= {f"ffn_{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")}
    ends = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    return {**{part: f"model.layers.{{}}.{name}" for part, name in parts.items()}, **ends}


def _name(name: str) -> str:
    pieces = name.removesuffix(".weight").split(".")
    pattern = _names().get(pieces[-1], name)
    return pattern.format(pieces[1] if len(pieces) > 1 else "") + ".weight"
