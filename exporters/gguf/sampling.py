"""How a text is sampled by default: generation_config.json in a GGUF file, written and read.

llama.cpp takes the keys `general.sampling.*` where the user says nothing. They hold less than generation_config.json
does, so the whole of it stands under `quantkit.generation_config` as well.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from quantkit.errors import MalformedFile
from quantkit.exporters.gguf.container.file import GGUFFile
from quantkit.exporters.gguf.container.header import entry
from quantkit.exporters.gguf.container.types import ValueType
from quantkit.exporters.gguf.keys import Keys
from quantkit.files.json_file import parse_json
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.config import token_ids_value
from quantkit.models.spec import ModelSpec
from quantkit.text.end_tokens import GENERATION_FILE
from quantkit.text.tokenizer_files import read_object

GENERATION_KEY = "quantkit.generation_config"
SAMPLING = "general.sampling."
TEMPERATURE, PENALTY, TOP_K = "temp", "penalty_repeat", "top_k"

_FLOATS: Mapping[str, tuple[str, float, float]] = {
    TEMPERATURE: ("temperature", 0.0, 100.0),
    "top_p": ("top_p", 0.0, 1.0),
    "min_p": ("min_p", 0.0, 1.0),
    PENALTY: ("repetition_penalty", 0.01, 100.0),
}
"""GGUF's name to that of generation_config.json, and what is in range."""
_SAID_ELSEWHERE = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "do_sample",
    "transformers_version",
    "_from_model_config",
)
"""Keys of generation_config.json that other keys of a GGUF file say, or that say nothing about sampling."""


def sampling_entries(model: Checkpoint) -> list[bytes]:
    """The keys for `generation_config.json` of `model`; none where there is no such file."""
    if GENERATION_FILE not in model.files:
        return []
    config = read_object(model.files, GENERATION_FILE)
    entries = [
        entry(SAMPLING + name, ValueType.INT32 if name == TOP_K else ValueType.FLOAT32, value)
        for name, value in _values(config).items()
    ]
    text = json.dumps(config, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return [*entries, entry(GENERATION_KEY, ValueType.STRING, text)]


def sampling_notes(model: Checkpoint) -> Iterator[str]:
    """What llama.cpp does not take from generation_config.json, one line each."""
    config = read_object(model.files, GENERATION_FILE)
    values = _values(config)
    taken = {*_SAID_ELSEWHERE, *(_FLOATS[name][0] if name in _FLOATS else name for name in values)}
    left = sorted(key for key, value in config.items() if value is not None and key not in taken)
    if left:
        yield f"{GENERATION_FILE}: llama.cpp takes no notice of {', '.join(left)[:160]}"
    if values.get(PENALTY, 1.0) != 1.0:
        yield "llama.cpp applies the repetition penalty to the last 64 tokens, transformers to the whole text"


def generation_files(gguf: GGUFFile, spec: ModelSpec) -> dict[str, Callable[[], bytes]]:
    """generation_config.json as quantkit recorded it, or made of the sampling keys; nothing where there are none.

    Keys that were changed after quantkit wrote the file count more than its record.

    Raises:
        MalformedFile: a key of the wrong type, or a record that is not a JSON object.
    """
    found, text = _found(gguf), gguf.metadata.get(GENERATION_KEY)
    config = _made(found, spec)
    if text is not None:
        if not isinstance(text, str):
            raise MalformedFile(f"{gguf.path}: {GENERATION_KEY} must be a string")
        recorded = parse_json(text.encode("utf-8"), f"{gguf.path}: {GENERATION_KEY}")
        if _stored(_values(recorded)) == _stored(found):
            config = recorded
    if text is None and not found:
        return {}
    data = (json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
    return {GENERATION_FILE: lambda: data}


def _values(config: Mapping[str, Any]) -> dict[str, float]:
    """GGUF's names to values; what is null or out of range is missing. Without sampling the temperature is 0."""
    found: dict[str, float] = {}
    for name, (key, low, high) in _FLOATS.items():
        value = config.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high:
            found[name] = float(value)
    if config.get("do_sample") is False:
        found[TEMPERATURE] = 0.0
    top_k = config.get(TOP_K)
    if isinstance(top_k, int) and not isinstance(top_k, bool) and -1 <= top_k < 1 << 31:
        found[TOP_K] = top_k
    return found


def _found(gguf: GGUFFile) -> dict[str, float]:
    """The sampling keys that the file has."""
    keys = Keys(gguf, SAMPLING)
    found: dict[str, float] = {name: keys.number(name) for name in _FLOATS if SAMPLING + name in gguf.metadata}
    if SAMPLING + TOP_K in gguf.metadata:
        found[TOP_K] = keys.integer(TOP_K)
    endless = [name for name, value in found.items() if not math.isfinite(value)]
    if endless:
        raise MalformedFile(f"{gguf.path}: key {SAMPLING + endless[0]!r} is not a finite number")
    return found


def _stored(values: Mapping[str, float]) -> dict[str, float]:
    return {name: float(np.float32(value)) for name, value in values.items()}


def _made(found: Mapping[str, float], spec: ModelSpec) -> dict[str, Any]:
    """generation_config.json of sampling keys alone; temperature 0 is what it calls no sampling."""
    config = {_FLOATS[name][0] if name in _FLOATS else name: value for name, value in found.items()}
    tokens = {"bos_token_id": spec.bos_token_id, "eos_token_id": token_ids_value(spec.eos_token_ids)}
    if found.get(TEMPERATURE) == 0.0:
        del config["temperature"]
    return {**tokens, "do_sample": found.get(TEMPERATURE) != 0.0, **config}
