"""Named bad model folders: how each is spoiled, the error that it must raise, and words that its message must contain.

IX.. are files that contradict each other, CF.. configs and NM.. tensors.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from quantkit.errors import (
    BadConfig,
    IncompleteCheckpoint,
    IncompleteFile,
    InconsistentCheckpoint,
    MalformedFile,
    QuantkitError,
    UnsafePath,
    UnsupportedModel,
)
from tests.support.malformed import Case
from tests.support.tiny import DTYPES, tiny_tensors, write_tensors, write_tiny_checkpoint

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX, CONFIG, SINGLE = "model.safetensors.index.json", "config.json", "model.safetensors"
Q = "model.layers.0.self_attn.q_proj.weight"


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def _config(**changes: object) -> Callable[[Path], object]:
    return lambda folder: edit_json(folder / CONFIG, lambda config: config.update(changes))


def _without(*keys: str) -> Callable[[Path], object]:
    return lambda folder: edit_json(folder / CONFIG, lambda config: [config.pop(key) for key in keys])


def _rope(**changes: object) -> Callable[[Path], object]:
    return lambda folder: edit_json(folder / CONFIG, lambda config: config["rope_scaling"].update(changes))


def _config_bytes(data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / CONFIG).write_bytes(data)


def _index(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    return lambda folder: edit_json(folder / INDEX, change)


def _map(**changes: object) -> Callable[[Path], object]:
    """Send q_proj of block 0 to another shard name."""
    return _index(lambda index: index["weight_map"].update({Q: changes["q"]}))


def replace_tensors(folder: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Replace the shards by a single file whose tensors are changed first."""
    tensors = tiny_tensors(json.loads((folder / CONFIG).read_text()))
    for path in (*folder.glob("*.safetensors"), folder / INDEX):
        path.unlink()
    change(tensors)
    write_tensors(folder, tensors)


def _rewrite(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], object]:
    return lambda folder: replace_tensors(folder, change)


def _index_a_tensor_twice(folder: Path) -> None:
    text = (folder / INDEX).read_text()
    (folder / INDEX).write_text(text.replace(f'"{Q}"', '"model.norm.weight"'))


def _replace(folder: Path, name: str, make: Callable[[Path], object]) -> None:
    (folder / name).unlink()
    make(folder / name)


def _link_outside(folder: Path) -> None:
    outside = folder.parent / "elsewhere.safetensors"
    (folder / FIRST).rename(outside)
    (folder / FIRST).symlink_to(outside)


def _add_layer(tensors: dict[str, np.ndarray]) -> None:
    tensors.update({n.replace("layers.0.", "layers.2."): t for n, t in tensors.items() if "layers.0." in n})


def _swap_shards(folder: Path) -> None:
    (folder / FIRST).rename(folder / "x")
    (folder / SECOND).rename(folder / FIRST)
    (folder / "x").rename(folder / SECOND)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != CONFIG:
            path.unlink()


def _pickles_only(folder: Path) -> None:
    _empty(folder)
    for number in range(3):
        (folder / f"pytorch_model-{number}.bin").write_bytes(b"\x80\x02.")


def _differing_head(tensors: dict[str, np.ndarray]) -> None:
    head = tensors["model.embed_tokens.weight"].copy()
    head[-1, -1] += 1
    tensors["lm_head.weight"] = head


def _single_beside_shards(folder: Path) -> None:
    save_file({"a": np.zeros(3, np.float32)}, folder / SINGLE)


def _cut(folder: Path) -> None:
    data = (folder / FIRST).read_bytes()
    (folder / FIRST).write_bytes(data[:-1])


def _multimodal_of_another_family(folder: Path) -> None:
    def prefix(tensors: dict[str, np.ndarray]) -> None:
        renamed = {f"llm.{name}": tensor for name, tensor in tensors.items()}
        tensors.clear()
        tensors.update(renamed)

    _rewrite(prefix)(folder)
    edit_json(folder / CONFIG, lambda config: config.update(architectures=["MiniCPMV"], model_type="minicpmv"))
    _without("scale_emb")(folder)


def _set(name: str, values: np.ndarray) -> Callable[[Path], object]:
    return _rewrite(lambda tensors: tensors.update({name: values}))


def _drop(name: str) -> Callable[[Path], object]:
    return _rewrite(lambda tensors: tensors.pop(name))


def _folder(name: str, build: Callable[[Path], object], error: type[QuantkitError], *words: str) -> Case:
    return Case(name, build, error, words)


_DUPLICATE = b'{"hidden_size": 64, "hidden_size": 128}'
_BF16 = DTYPES["bf16"]

FOLDER_CASES: tuple[Case, ...] = (
    _folder("IX01 shard leads out of the folder", _map(q="../../x.safetensors"), UnsafePath, INDEX, "../../x"),
    _folder("IX02 shard is absolute", _map(q="/etc/passwd"), UnsafePath, INDEX, "/etc/passwd"),
    _folder("IX03 shard on a drive", _map(q="D:x.safetensors"), UnsafePath, INDEX, "D:x"),
    _folder("IX03 shard on a Windows path", _map(q="C:\\x.safetensors"), UnsafePath, INDEX),
    _folder("IX03 shard on a network share", _map(q="\\\\host\\share\\x.safetensors"), UnsafePath, INDEX),
    _folder("IX04 shard in a subfolder", _map(q="sub/x.safetensors"), UnsafePath, INDEX, "sub/x"),
    _folder("IX04 shard is a pickle", _map(q="pytorch_model.bin"), MalformedFile, INDEX, "pytorch_model.bin"),
    _folder("IX04 shard name with a newline", _map(q="a\nb.safetensors"), UnsafePath, INDEX),
    _folder("IX05 shard is a list", _map(q=["x"]), MalformedFile, INDEX, Q),
    _folder("IX05 shard is a number", _map(q=1), MalformedFile, INDEX, Q),
    _folder("IX05 shard is null", _map(q=None), MalformedFile, INDEX, Q),
    _folder("IX05 no weight_map", _index(lambda index: index.pop("weight_map")), MalformedFile, INDEX, "weight_map"),
    _folder("IX05 empty weight_map", _index(lambda index: index["weight_map"].clear()), MalformedFile, "weight_map"),
    _folder(
        "IX05 metadata is a list", _index(lambda index: index.update(metadata=[])), MalformedFile, INDEX, "metadata"
    ),
    _folder("IX06 shard missing", lambda f: (f / SECOND).unlink(), IncompleteCheckpoint, SECOND, "1 of 2"),
    _folder(
        "IX08 indexed tensor in no shard",
        _index(lambda index: index["weight_map"].update({"ghost": FIRST})),
        InconsistentCheckpoint,
        "'ghost'",
        FIRST,
    ),
    _folder("IX09 tensor in another shard", _map(q=SECOND), InconsistentCheckpoint, Q, FIRST, SECOND),
    _folder(
        "IX09 tensor that the index does not list",
        _index(lambda index: index["weight_map"].pop(Q)),
        InconsistentCheckpoint,
        Q,
        "does not list",
    ),
    _folder("IX09 shards swapped", _swap_shards, InconsistentCheckpoint, FIRST, SECOND),
    _folder("IX10 shards without an index", lambda f: (f / INDEX).unlink(), IncompleteCheckpoint, INDEX),
    _folder(
        "IX10 one shard of two, no index",
        lambda f: ((f / INDEX).unlink(), (f / SECOND).unlink()),
        IncompleteCheckpoint,
        INDEX,
        FIRST,
    ),
    _folder(
        "IX11 shards of different sets",
        _map(q="model-00002-of-00003.safetensors"),
        InconsistentCheckpoint,
        "model-00002-of-00003",
    ),
    _folder("IX13 tensor indexed twice", _index_a_tensor_twice, MalformedFile, INDEX, "model.norm.weight", "twice"),
    _folder("IX15 shard links out of the folder", _link_outside, UnsafePath, FIRST, "outside"),
    _folder("IX17 shard is a FIFO", lambda f: _replace(f, FIRST, os.mkfifo), MalformedFile, FIRST, "regular file"),
    _folder("IX17 shard is a folder", lambda f: _replace(f, FIRST, Path.mkdir), MalformedFile, FIRST, "regular file"),
    _folder("IX18 link loop", lambda f: _replace(f, FIRST, lambda p: p.symlink_to(FIRST)), UnsafePath, FIRST, "itself"),
    _folder(
        "IX18 dangling link", lambda f: _replace(f, FIRST, lambda p: p.symlink_to("no")), IncompleteCheckpoint, FIRST
    ),
    _folder("IX20 single file beside shards", _single_beside_shards, InconsistentCheckpoint, SINGLE, INDEX),
    _folder("IX21 shard cut by one byte", _cut, IncompleteFile, FIRST, "1 bytes are missing"),
    _folder("IX24 no weights", _empty, IncompleteCheckpoint, "no .safetensors"),
    _folder("IX24 pickles only", _pickles_only, IncompleteCheckpoint, "no .safetensors", "3 pickle files"),
    _folder("CF01 no config", lambda f: (f / CONFIG).unlink(), IncompleteCheckpoint, CONFIG),
    _folder("CF01 empty config", _config_bytes(b""), IncompleteFile, CONFIG, "empty"),
    _folder("CF01 config is a list", _config_bytes(b"[]"), MalformedFile, CONFIG, "an array"),
    _folder("CF01 config over 1 MB", _config_bytes(b" " * (1 << 20) + b"{}"), MalformedFile, CONFIG, "1,048,576"),
    _folder("CF02 negative hidden_size", _config(hidden_size=-1), BadConfig, CONFIG, "hidden_size", "-1"),
    _folder("CF02 fractional hidden_size", _config(hidden_size=1e3), BadConfig, CONFIG, "hidden_size"),
    _folder("CF02 hidden_size as text", _config(hidden_size="64"), BadConfig, CONFIG, "hidden_size", "'64'"),
    _folder("CF02 hidden_size true", _config(hidden_size=True), BadConfig, CONFIG, "hidden_size"),
    _folder("CF02 hidden_size 2^63", _config(hidden_size=2**63), BadConfig, CONFIG, "hidden_size"),
    _folder("CF03 context of 9e18", _config(max_position_embeddings=9 * 10**18), BadConfig, CONFIG, "max_position"),
    _folder("CF04 more layers than weights", _config(num_hidden_layers=1000), IncompleteCheckpoint, "model.layers.2."),
    _folder(
        "CF04 fewer layers than weights", _config(num_hidden_layers=1), InconsistentCheckpoint, "layer 1", "1 layers"
    ),
    _folder(
        "CF05 vocabulary against embedding", _config(vocab_size=33), InconsistentCheckpoint, "embed_tokens", "32", "33"
    ),
    _folder("CF06 heads that do not divide", _config(num_attention_heads=3), BadConfig, CONFIG, "num_attention_heads"),
    _folder(
        "CF07 tied head that differs", _rewrite(_differing_head), InconsistentCheckpoint, "lm_head", "embed_tokens"
    ),
    _folder("CF07 untied without a head", _config(tie_word_embeddings=False), IncompleteCheckpoint, "lm_head.weight"),
    _folder("CF09 unknown family", _config(architectures=["FooForCausalLM"]), UnsupportedModel, CONFIG, "Foo"),
    _folder(
        "CF10 quantized already",
        _config(quantization_config={"quant_method": "gptq"}),
        UnsupportedModel,
        CONFIG,
        "quantized",
    ),
    _folder("CF11 key twice", _config_bytes(_DUPLICATE), MalformedFile, CONFIG, "'hidden_size'", "twice"),
    _folder("CF12 RoPE factor 0", _rope(short_factor=[0.0] * 16), BadConfig, CONFIG, "short_factor"),
    _folder("CF12 RoPE factor 1e308", _rope(long_factor=[1e308] * 16), BadConfig, CONFIG, "long_factor"),
    _folder("CF13 eos outside the vocabulary", _config(eos_token_id=[2, 32]), BadConfig, CONFIG, "eos_token_id"),
    _folder("CF14 UTF-16 config", _config_bytes("{}".encode("utf-16")), MalformedFile, CONFIG, "UTF-16"),
    _folder("CF15 another text model under llm.", _multimodal_of_another_family, UnsupportedModel, CONFIG, "scale_emb"),
    _folder("NM01 wrong shape", _set(Q, np.zeros((64, 63), _BF16)), InconsistentCheckpoint, Q, "[64, 63]", "[64, 64]"),
    _folder("NM02 transposed", _set(Q, np.zeros((4096,), _BF16)), InconsistentCheckpoint, Q, "[4096]"),
    _folder("NM03 float8 weight", _set(Q, np.zeros((64, 64), "float8_e4m3fn")), UnsupportedModel, Q, "float8"),
    _folder("NM04 integer weight", _set(Q, np.zeros((64, 64), np.int8)), UnsupportedModel, Q, "int8"),
    _folder("NM05 tensor missing", _drop(Q), IncompleteCheckpoint, Q),
    _folder("NM06 norm missing", _drop("model.norm.weight"), IncompleteCheckpoint, "model.norm.weight"),
    _folder("NM07 layer too many", _rewrite(_add_layer), InconsistentCheckpoint, "model.layers.2.", "2 layers"),
    _folder(
        "NM08 bias",
        _set("model.layers.0.self_attn.q_proj.bias", np.zeros(64, _BF16)),
        InconsistentCheckpoint,
        "q_proj.bias",
    ),
)


def write_small_checkpoint(folder: Path) -> Path:
    """The folder that `FOLDER_CASES` spoil: small enough to make one for each."""
    return write_tiny_checkpoint(folder, hidden=64, intermediate=96, heads=2, kv_heads=1, vocab=32)
