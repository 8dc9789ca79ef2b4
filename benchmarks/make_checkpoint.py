"""Make a checkpoint that has the true shapes, files and traps of a MiniCPM4 model, and random weights.

    python -m benchmarks.make_checkpoint --shape minicpm4-0.5b --out DIR [--shards N]    868 MB, in seconds
    python -m benchmarks.make_checkpoint --shape minicpm4-8b --sparse --out DIR          16 GB of holes, at once
    python -m benchmarks.make_checkpoint --shape minicpm4-0.5b --ternary --out DIR       fake-quantized, as BitCPM4 is

Weights are normal with unit gain, every 256th column or so eight times as wide, as in trained models; norms lie near
1. They are seeded and written as they are drawn: memory does not grow with the model. With `--sparse` the headers are
complete and the data is a hole in the file, which reads as zeros and takes no room on disk. With `--ternary` every row
of the layers' matrices is -s, 0 and s for s = mean |w| in bfloat16, and a zero keeps the sign of what was rounded.

The vocabulary is synthetic: 73 440 pieces in `tokenizer.model`, the eight specials behind them in `added_tokens.json`.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice, product
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import ml_dtypes
import numpy as np

from quantkit.models.recognition import parse_config

PIECES = 73440
SPECIALS = (
    "<|im_end|>",
    "<|im_start|>",
    "<|tool_call|>",
    "<|execute_start|>",
    "<|execute_end|>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
)
CONTROLS = ("<unk>", "<s>", "</s>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CHUNK_ELEMENTS = 1 << 20
OUTLIER_SPACING = 256
OUTLIER_GAIN = 8.0
SHARDS = {"minicpm4-0.5b": 1, "minicpm4-8b": 4}
LAYERS = "model.layers."
Draw = Callable[[str, tuple[int, ...]], Iterator[np.ndarray]]
"""A tensor's name and shape to its values, in runs of whole rows."""


def longrope_factors(pairs: int, widest: float) -> list[float]:
    """One factor per pair of channels: from 1 to `widest` along the cubic smoothstep u^2 (3 - 2u)."""
    u = np.linspace(0.0, 1.0, pairs)
    return [float(factor) for factor in np.round(1 + (widest - 1) * u**2 * (3 - 2 * u), 6)]


def config(shape: str) -> dict[str, Any]:
    """`config.json` of `shape`; the 0.5B leaves `tie_word_embeddings`, `rope_theta` and `pad_token_id` unsaid."""
    large = shape == "minicpm4-8b"
    factors = longrope_factors(64, 31.0) if large else longrope_factors(32, 50.0)
    common = {
        "architectures": ["MiniCPMForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_minicpm.MiniCPMConfig",
            "AutoModelForCausalLM": "modeling_minicpm.MiniCPMForCausalLM",
        },
        "bos_token_id": 1,
        "dim_model_base": 256,
        "eos_token_id": [2, PIECES],
        "hidden_act": "silu",
        "hidden_size": 4096 if large else 1024,
        "initializer_range": 0.1,
        "intermediate_size": 16384 if large else 4096,
        "max_position_embeddings": 32768,
        "model_type": "minicpm",
        "num_attention_heads": 32 if large else 16,
        "num_hidden_layers": 32 if large else 24,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06 if large else 1e-05,
        "rope_scaling": {
            "rope_type": "longrope",
            "long_factor": factors,
            "short_factor": factors,
            "original_max_position_embeddings": 32768,
        },
        "scale_depth": 1.4,
        "scale_emb": 12,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": PIECES + len(SPECIALS),
    }
    said = {"mup_denominator": 32, "pad_token_id": 2, "rope_theta": 10000.0, "tie_word_embeddings": False}
    return common | said if large else common


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name to shape of every tensor, sorted by name: the order in which the `safetensors` package lays them out."""
    return {slot.name: slot.shape for slot in sorted(parse_config(config).slots(), key=lambda slot: slot.name)}


def split(tensors: Mapping[str, tuple[int, ...]], shards: int) -> list[dict[str, tuple[int, ...]]]:
    """Deal the tensors out to `shards` files of about the same number of bytes, in order."""
    total = sum(nbytes(shape) for shape in tensors.values())
    parts: list[dict[str, tuple[int, ...]]] = [{} for _ in range(shards)]
    before = 0
    for name, shape in tensors.items():
        parts[min(shards - 1, before * shards // total)][name] = shape
        before += nbytes(shape)
    return parts


def nbytes(shape: tuple[int, ...]) -> int:
    """Bytes of a bfloat16 tensor."""
    return 2 * int(np.prod(shape, dtype=np.int64))


def write_weights(folder: Path, tensors: Mapping[str, tuple[int, ...]], *, shards: int, draw: Draw | None) -> int:
    """Write the weights as `shards` safetensors files, with an index when there are several; returns their bytes."""
    if shards == 1:
        return write_shard(folder / "model.safetensors", tensors, draw)
    size, weight_map = 0, {}
    for number, part in enumerate(split(tensors, shards), 1):
        name = f"model-{number:05}-of-{shards:05}.safetensors"
        size += write_shard(folder / name, part, draw)
        weight_map.update(dict.fromkeys(part, name))
    total = sum(nbytes(shape) for shape in tensors.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})
    return size


def write_shard(path: Path, tensors: Mapping[str, tuple[int, ...]], draw: Draw | None) -> int:
    """Write one safetensors file, holes where there is no `draw`; returns its bytes."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in tensors.items():
        end = position + nbytes(shape)
        entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        if draw is None:
            file.truncate(8 + len(text) + position)
        else:
            for name, shape in tensors.items():
                for values in draw(name, shape):
                    file.write(values.astype(ml_dtypes.bfloat16).view(np.uint16).data)
    return 8 + len(text) + position


def normal(name: str, shape: tuple[int, ...], *, seed: int) -> Iterator[np.ndarray]:
    """Draw a tensor in float32, about a million weights at a time; its values depend on `seed` and `name` only."""
    random = np.random.default_rng([seed, *name.encode()])
    if len(shape) == 1:
        yield 1 + 0.1 * random.standard_normal(shape, np.float32)
        return
    rows, cols = shape
    gain = np.full(cols, cols**-0.5, np.float32)
    gain[random.choice(cols, cols // OUTLIER_SPACING, replace=False)] *= OUTLIER_GAIN
    step = max(1, CHUNK_ELEMENTS // cols)
    for start in range(0, rows, step):
        values = random.standard_normal((min(step, rows - start), cols), np.float32)
        values *= gain
        yield values


def ternary(name: str, shape: tuple[int, ...], *, seed: int) -> Iterator[np.ndarray]:
    """The same tensor; of a layer's matrix each row w is clip(round(w / s), -1, 1) * s, s = mean |w| in bfloat16."""
    for values in normal(name, shape, seed=seed):
        if name.startswith(LAYERS) and len(shape) == 2:
            scale = np.abs(values).mean(axis=1, keepdims=True).astype(ml_dtypes.bfloat16).astype(np.float32)
            values = np.clip(np.rint(values / scale), -1, 1) * scale  # noqa: PLW2901 - what is drawn, rounded
        yield values


def pieces() -> Iterator[tuple[str, int]]:
    """Every piece of the vocabulary with its SentencePiece type: 1 normal, 2 unknown, 3 control, 6 byte."""
    yield from zip(CONTROLS, (2, 3, 3), strict=True)
    yield from ((f"<0x{byte:02X}>", 6) for byte in range(256))
    printable = map(chr, range(0x21, 0x7F))
    chinese = map(chr, range(0x4E00, 0x9FA6))
    words = ("▁" + "".join(letters) for length in (2, 3, 4) for letters in product(ascii_lowercase, repeat=length))
    normal = chain("▁", printable, chinese, words)
    yield from ((text, 1) for text in islice(normal, PIECES - len(CONTROLS) - 256))


def field(number: int, value: bytes | int | float) -> bytes:
    """One protobuf field: bytes are length-delimited, integers varints, floats 32-bit."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    """An unsigned protobuf varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def sentencepiece_model() -> bytes:
    """`tokenizer.model`: a `ModelProto` of sentencepiece_model.proto, type BPE with byte fallback."""
    listed = (
        field(1, field(1, text.encode()) + field(2, -float(index)) + (field(3, kind) if kind != 1 else b""))
        for index, (text, kind) in enumerate(pieces())
    )
    trainer = field(3, 2) + field(4, PIECES) + field(35, 1) + field(40, 0) + field(41, 1) + field(42, 2)
    normalizer = field(1, b"identity") + field(3, 1) + field(4, 0) + field(5, 1)
    return b"".join(listed) + field(2, trainer) + field(3, normalizer)


def write_tokenizer(folder: Path) -> None:
    """Write `tokenizer.model` and the JSON files that add the specials."""
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    added = {text: PIECES + index for index, text in enumerate(SPECIALS)}
    write_json(folder / "added_tokens.json", added)
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    listed = dict(zip(CONTROLS, range(3), strict=True)) | added
    settings = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {str(index): {"content": text, **plain} for text, index in listed.items()},
        "additional_special_tokens": list(SPECIALS),
        "bos_token": "<s>",
        "chat_template": CHAT_TEMPLATE,
        "eos_token": "<|im_end|>",
        "legacy": True,
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
    }
    write_json(folder / "tokenizer_config.json", settings)


def write_json(path: Path, value: object) -> None:
    """Write JSON with two spaces, as transformers does."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def make_checkpoint(
    folder: Path,
    shape: str,
    *,
    shards: int | None = None,
    layers: int | None = None,
    sparse: bool = False,
    fake_quantized: bool = False,
    seed: int = 0,
) -> int:
    """Write a whole checkpoint into the new folder `folder`; returns the bytes of its weights.

    layers: how many, where it is not to be the shape's number. sparse: holes for weights. fake_quantized: ternary
    matrices in the layers.
    """
    folder.mkdir(parents=True)
    settings = config(shape)
    settings["num_hidden_layers"] = layers or settings["num_hidden_layers"]
    write_json(folder / "config.json", settings)
    generation = {"bos_token_id": 1, "do_sample": True, "eos_token_id": settings["eos_token_id"], "temperature": 0.8}
    write_json(folder / "generation_config.json", generation)
    write_tokenizer(folder)
    draw = None if sparse else partial(ternary if fake_quantized else normal, seed=seed)
    return write_weights(folder, shapes(settings), shards=shards or SHARDS[shape], draw=draw)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, make, say what was made."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=tuple(SHARDS), required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder to create")
    parser.add_argument("--shards", type=int, help="number of weight files (default: 1 for 0.5b, 4 for 8b)")
    parser.add_argument("--layers", type=int, help="number of layers (default: the shape's)")
    parser.add_argument("--sparse", action="store_true", help="leave the weights as holes: zeros that take no room")
    parser.add_argument("--ternary", action="store_true", help="layers' matrices of -s, 0 and s for every row")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    size = make_checkpoint(
        options.out,
        options.shape,
        shards=options.shards,
        layers=options.layers,
        sparse=options.sparse,
        fake_quantized=options.ternary,
        seed=options.seed,
    )
    print(f"{options.out}: {size:,} bytes of weights in {time.perf_counter() - start:.2f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
