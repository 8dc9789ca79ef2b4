"""Faults of one container: keys that its engine reads, changed in a finished file whose manifest is signed anew."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.faults.fault import IDENTITY, NUMBERS, Fault, Level, NotApplicable, Proof, Trial, Way
from benchmarks.faults.gguf_bytes import RawGGUF, edit, read_raw
from quantkit.exporters.gguf.container.types import ValueType

CONFIG_KEY = "quantkit.config"
QUANTIZATION_KEY = "quantkit.quantization"


def set_key(path: Path, key: str, kind: ValueType, change: Callable[[float], float]) -> None:
    """A number of the architecture changed, as an engine reads it; quantkit's own copy of the config stays."""
    raw = read_raw(path)
    full = f"{raw.value('general.architecture').decode()}.{key}"
    if full not in raw.entries:
        raise NotApplicable(f"no {key}")
    dtype = {ValueType.UINT32: "<u4", ValueType.FLOAT32: "<f4"}[kind]
    value = float(_number(raw.value(full), dtype))
    path.write_bytes(raw.with_entry(full, kind, change(value)).to_bytes())


def _number(data: bytes, dtype: str) -> float:
    return float(np.frombuffer(data, dtype)[0])


def edit_config(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """The config changed: config.json of a folder, quantkit's copy in a GGUF file."""
    if path.is_dir():
        file = path / "config.json"
        file.write_text(json.dumps(change(json.loads(file.read_bytes())), indent=2))
        return
    raw = read_raw(path)
    text = json.dumps(change(json.loads(raw.value(CONFIG_KEY))), separators=(",", ":"), ensure_ascii=False)
    path.write_bytes(raw.with_entry(CONFIG_KEY, ValueType.STRING, text).to_bytes())


def with_attention_factor(config: dict[str, Any]) -> dict[str, Any]:
    """A LongRoPE attention factor spelled out that is not the model's."""
    if not config.get("rope_scaling"):
        raise NotApplicable("no LongRoPE")
    if config["model_type"] == "minicpm":
        raise NotApplicable("MiniCPM's own code ignores it")
    return {**config, "rope_scaling": {**config["rope_scaling"], "attention_factor": 1.5}}


def widen_groups(raw: RawGGUF) -> RawGGUF:
    """The record of the codes names another group size."""
    if QUANTIZATION_KEY not in raw.entries:
        raise NotApplicable("no codes")
    record = json.loads(raw.value(QUANTIZATION_KEY))
    for group in record["groups"]:
        group["spec"]["group_size"] *= 2
    return raw.with_entry(QUANTIZATION_KEY, ValueType.STRING, json.dumps(record))


def without_scales(raw: RawGGUF) -> RawGGUF:
    """The architecture's three scalars missing, as in files of old converters."""
    for key in ("embedding_scale", "residual_scale", "logit_scale"):
        raw = raw.without(f"minicpm.{key}")
    return raw


def as_llama(raw: RawGGUF) -> RawGGUF:
    """The same file under the name of another architecture, which has no scalars."""
    arch = raw.value("general.architecture").decode()
    entries = {}
    for key, whole in raw.entries.items():
        if not key.startswith(f"{arch}."):
            entries[key] = whole
        elif not key.endswith(("embedding_scale", "residual_scale", "logit_scale")):
            name = "llama" + key[len(arch) :]
            entries[name] = len(name).to_bytes(8, "little") + name.encode() + whole[8 + len(key.encode()) :]
    changed = RawGGUF(raw.tensors, entries, raw.infos, raw.data)
    return changed.with_entry("general.architecture", ValueType.STRING, "llama").without(CONFIG_KEY)


def in_gguf(change: Callable[[RawGGUF], RawGGUF]) -> Callable[[Path], None]:
    """A change of a GGUF file's metadata."""
    return lambda path: edit(path, change)


def tokenizer_id(key: str, change: int) -> Callable[[Path], None]:
    """Another token id in the tokenizer's keys."""

    def changed(raw: RawGGUF) -> RawGGUF:
        full = f"tokenizer.ggml.{key}"
        if full not in raw.entries:
            raise NotApplicable(f"no {key}")
        return raw.with_entry(full, ValueType.UINT32, int(_number(raw.value(full), "<u4")) + change)

    return in_gguf(changed)


def flag(key: str) -> Callable[[Path], None]:
    """A flag of the tokenizer flipped."""

    def changed(raw: RawGGUF) -> RawGGUF:
        full = f"tokenizer.ggml.{key}"
        return raw.with_entry(full, ValueType.BOOL, raw.value(full) == b"\0")

    return in_gguf(changed)


def without(key: str) -> Callable[[Path], None]:
    """A key missing."""

    def changed(raw: RawGGUF) -> RawGGUF:
        if key not in raw.entries:
            raise NotApplicable(f"no {key}")
        return raw.without(key)

    return in_gguf(changed)


FLOAT, UINT = ValueType.FLOAT32, ValueType.UINT32
CONTRADICTING: Mapping[str, Callable[[Path], None]] = {
    "GGUF: rope.freq_base doubled": lambda path: set_key(path, "rope.freq_base", FLOAT, lambda v: 2 * v),
    "GGUF: embedding_scale 12 -> 11": lambda path: set_key(path, "embedding_scale", FLOAT, lambda v: v - 1),
    "GGUF: residual_scale x 1.1": lambda path: set_key(path, "residual_scale", FLOAT, lambda v: 1.1 * v),
    "GGUF: logit_scale x 1.1": lambda path: set_key(path, "logit_scale", FLOAT, lambda v: 1.1 * v),
    "GGUF: epsilon x 100": lambda path: set_key(path, "attention.layer_norm_rms_epsilon", FLOAT, lambda v: 100 * v),
    "GGUF: attn_factor x 1.2": lambda path: set_key(path, "rope.scaling.attn_factor", FLOAT, lambda v: 1.2 * v),
    "GGUF: original context halved": lambda path: set_key(
        path, "rope.scaling.original_context_length", UINT, lambda v: v // 2
    ),
    "GGUF: context doubled": lambda path: set_key(path, "context_length", UINT, lambda v: 2 * v),
    "GGUF: an unknown attention scale": in_gguf(
        lambda raw: raw.with_entry(f"{raw.value('general.architecture').decode()}.attention.scale", FLOAT, 0.1)
    ),
    "GGUF: rope.scaling.type missing": in_gguf(
        lambda raw: raw.without(f"{raw.value('general.architecture').decode()}.rope.scaling.type")
    ),
    "GGUF: three scalars missing": in_gguf(without_scales),
    "GGUF: another architecture": in_gguf(as_llama),
}
CODES: Mapping[str, Callable[[Path], None]] = {"GGUF: group size of the codes doubled": in_gguf(widen_groups)}
TOKENIZER: Mapping[str, Callable[[Path], None]] = {
    "GGUF: eos id alone": tokenizer_id("eos_token_id", 2),
    "GGUF: bos id alone": tokenizer_id("bos_token_id", 1),
    "GGUF: end of turn missing": without("tokenizer.ggml.eot_token_id"),
    "GGUF: add_bos_token flipped": flag("add_bos_token"),
    "GGUF: add_space_prefix flipped": flag("add_space_prefix"),
    "GGUF: chat template missing": without("tokenizer.chat_template"),
}
CONFIG: Mapping[str, Callable[[Path], None]] = {
    "config: attention_factor 1.5": partial(edit_config, change=with_attention_factor),
    "config: sliding_window 4": partial(edit_config, change=lambda config: {**config, "sliding_window": 4}),
    "config: logit soft cap": partial(edit_config, change=lambda config: {**config, "final_logit_softcapping": 5.0}),
    "config: partial_rotary_factor 0.5": partial(
        edit_config, change=lambda config: {**config, "partial_rotary_factor": 0.5}
    ),
    "config: rope_theta doubled": partial(
        edit_config, change=lambda config: {**config, "rope_theta": 2 * config.get("rope_theta", 10000.0)}
    ),
}


def _faults(
    changes: Mapping[str, Callable[[Path], None]], containers: tuple[str, ...], steps: tuple[str, ...]
) -> tuple[Fault, ...]:
    return tuple(
        Fault(
            name=name,
            kind="container",
            level=Level.BYTES,
            change=change,
            trials=(Trial(Way.SIGNED, Proof.GOLDEN, steps),),
            containers=containers,
        )
        for name, change in changes.items()
    )


FAULTS = (
    *_faults(CONTRADICTING, ("gguf",), (IDENTITY,)),
    *_faults(CODES, ("gguf",), (NUMBERS,)),
    *_faults(TOKENIZER, ("gguf",), (IDENTITY,)),
    *_faults(CONFIG, ("folder", "gguf"), (IDENTITY,)),
)
