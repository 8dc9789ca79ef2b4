"""The golden model's tokenizer in variants: the same rules, told by other files or told otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from quantkit.models.checkpoint import Checkpoint
from quantkit.text.companions import with_companions
from tests.support.memory import memory_checkpoint, tiny_config

IM_END, IM_START = 2040, 2041
GOLDEN = Path(__file__).resolve().parent.parent.parent / "golden" / "model"
NAMES = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json")

Files = dict[str, bytes]


def golden_files(*names: str) -> Files:
    """The golden tokenizer's files of these names, all of them unless some are given."""
    return {name: (GOLDEN / name).read_bytes() for name in names or NAMES}


def changed(files: Mapping[str, bytes], name: str, edit: Callable[[dict[str, Any]], object]) -> Files:
    """`files` with the JSON file `name` after `edit` has changed it in place."""
    value = json.loads(files.get(name, b"{}"))
    edit(value)
    return {**files, name: json.dumps(value, ensure_ascii=False).encode()}


def config_with(files: Mapping[str, bytes], **keys: Any) -> Files:
    """`files` with `keys` in tokenizer_config.json; None removes one."""

    def edit(config: dict[str, Any]) -> None:
        config.update(keys)
        for key in [key for key, value in config.items() if value is None]:
            del config[key]

    return changed(files, "tokenizer_config.json", edit)


def only_tokenizer_json(**keys: Any) -> Files:
    """The golden tokenizer as transformers 5 writes it: tokenizer.json lists what is added; with tokenizer.model."""
    files = golden_files("tokenizer.model", "tokenizer.json")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    return {**files, "tokenizer_config.json": json.dumps({**config, **keys}).encode()}


def opened(files: Mapping[str, bytes], **config: Any) -> Checkpoint:
    """A tiny model with these files, as a reader of folders completes it."""
    settings = {"vocab_size": 2048, "eos_token_id": [2, IM_END], **config}
    return with_companions(memory_checkpoint(tiny_config(**settings), files=files))


def written(files: Mapping[str, bytes], folder: Path) -> Path:
    """The files in `folder`, for readers other than quantkit."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder
