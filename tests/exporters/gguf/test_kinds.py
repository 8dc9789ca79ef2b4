"""GGUF files that hold no model are told for what they are."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from quantkit import registry
from quantkit.errors import UnsupportedModel
from quantkit.exporters.gguf.container.header import entry, header_bytes
from quantkit.exporters.gguf.container.types import ValueType
from tests.exporters.gguf.container.test_split import rewrite
from tests.support.gguf_models import dense, write

KINDS = {
    "adapter": (r"an adapter \(LoRA or alike\)", "llama-export-lora"),
    "mmproj": ("sees or hears", "the language model"),
    "vocab": ("a vocabulary without weights", "the model itself"),
    "imatrix": ("an importance matrix", "the model itself"),
    "thing": ("of the kind 'thing'", "the model itself"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_another_kind_is_named(kind: str, tmp_path: Path) -> None:
    message, hint = KINDS[kind]
    keys = [("general.type", kind), ("general.architecture", "llama"), ("adapter.type", "lora")]
    entries = [entry(key, ValueType.STRING, value) for key, value in keys]
    (tmp_path / "m.gguf").write_bytes(header_bytes(entries, []))
    with pytest.raises(UnsupportedModel, match=message) as refusal:
        registry.open_checkpoint(tmp_path / "m.gguf")
    assert hint in str(refusal.value.hint)


@pytest.mark.parametrize(
    "kind, pad",
    [(ValueType.UINT32, 4294967295), (ValueType.INT32, -1), (ValueType.UINT32, 2048), (ValueType.UINT32, 10**9)],
)
def test_a_padding_that_is_no_token_is_none(
    kind: ValueType, pad: int, tmp_path: Path, tokenizer_files: dict[str, bytes]
) -> None:
    path = write(dense(files=tokenizer_files), tmp_path / "m.gguf")
    keys = {"tokenizer.ggml.padding_token_id": (pad, gguf.GGUFValueType(int(kind)), None)}
    other = rewrite(path, tmp_path / "other.gguf", keys=keys)
    assert registry.open_checkpoint(other).spec.pad_token_id is None
