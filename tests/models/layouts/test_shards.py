"""Shards and their index: harmless repetitions, and refusals that say what happened to the folder."""

from __future__ import annotations

import json
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from quantkit import registry
from quantkit.errors import IncompleteCheckpoint, InconsistentCheckpoint, UnsupportedModel
from tests.support.malformed_folders import CONFIG, FIRST, INDEX, SECOND, SINGLE, Q, edit_json, write_small_checkpoint

EMBEDDING, NORM = "model.embed_tokens.weight", "model.norm.weight"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_small_checkpoint(tmp_path / "model")


def repeat(folder: Path, name: str, *, into: str, source: str, change: bool = False, dtype: object = None) -> None:
    """Copy tensor `name` of the shard `source` into another one."""
    tensors = load_file(folder / into)
    copy = load_file(folder / source)[name].copy()
    if change:
        copy.reshape(-1)[-1] = 3
    tensors[name] = copy if dtype is None else copy.astype(dtype)
    save_file(tensors, folder / into)


def test_a_tensor_with_the_same_bytes_in_two_shards_is_read_once(small: Path) -> None:
    before = {name: view.read().tobytes() for name, view in registry.open_checkpoint(small).weights.items()}
    repeat(small, EMBEDDING, into=SECOND, source=FIRST)
    repeat(small, NORM, into=FIRST, source=SECOND)
    checkpoint = registry.open_checkpoint(small)
    assert {name: view.read().tobytes() for name, view in checkpoint.weights.items()} == before
    assert any(
        f"two shards hold {EMBEDDING!r}" in note or f"two shards hold {NORM!r}" in note for note in checkpoint.notes
    )


def test_the_sum_of_an_index_may_count_a_repetition_or_not(small: Path) -> None:
    total = json.loads((small / INDEX).read_text())["metadata"]["total_size"]
    repeat(small, EMBEDDING, into=SECOND, source=FIRST)
    size = load_file(small / FIRST)[EMBEDDING].nbytes
    for said, right in ((total, True), (total + size, True), (total + 2, False)):
        edit_json(small / INDEX, lambda index, said=said: index["metadata"].update(total_size=said))
        assert any("total_size" in note for note in registry.open_checkpoint(small).notes) is not right


@pytest.mark.parametrize("name, into, source", [(EMBEDDING, SECOND, FIRST), (NORM, FIRST, SECOND), (Q, SECOND, FIRST)])
def test_a_tensor_with_other_bytes_in_two_shards_is_refused(name: str, into: str, source: str, small: Path) -> None:
    repeat(small, name, into=into, source=source, change=True)
    with pytest.raises(InconsistentCheckpoint, match="with other values") as refusal:
        registry.open_checkpoint(small)
    assert all(word in str(refusal.value) for word in (name, FIRST, SECOND))


def test_a_tensor_of_another_dtype_or_shape_in_two_shards_is_refused(small: Path) -> None:
    repeat(small, NORM, into=FIRST, source=SECOND, dtype=np.float32)
    with pytest.raises(InconsistentCheckpoint, match="with other values"):
        registry.open_checkpoint(small)
    tensors = load_file(small / FIRST)
    tensors[NORM] = np.ones(3, ml_dtypes.bfloat16)
    save_file(tensors, small / FIRST)
    with pytest.raises(InconsistentCheckpoint, match="with other values"):
        registry.open_checkpoint(small)


def other_names(folder: Path) -> None:
    """The shards of another build: three of them by the index, two in the folder."""
    edit_json(
        folder / INDEX,
        lambda index: index.update(
            weight_map={
                name: f"model-{1 + place % 3:05}-of-00003.safetensors" for place, name in enumerate(index["weight_map"])
            }
        ),
    )


def one_file(folder: Path) -> None:
    """The weights as one file, beside the index of the shards that they were."""
    save_file(load_file(folder / FIRST) | load_file(folder / SECOND), folder / SINGLE)
    (folder / FIRST).unlink()
    (folder / SECOND).unlink()


def one_missing(folder: Path) -> None:
    (folder / SECOND).unlink()


def one_begun(folder: Path) -> None:
    (folder / SECOND).rename(folder / f"{SECOND}.part")


def one_begun_by_the_hub(folder: Path) -> None:
    (folder / SECOND).unlink()
    (folder / ".cache" / "huggingface" / "download").mkdir(parents=True)
    (folder / ".cache" / "huggingface" / "download" / "abc.incomplete").write_bytes(b"")


def one_begun_by_a_browser(folder: Path) -> None:
    (folder / SECOND).rename(folder / "Unconfirmed 1234.crdownload")


def one_more(folder: Path) -> None:
    """A tensor that the index does not know."""
    save_file(load_file(folder / SECOND) | {"model.extra": np.zeros(3, np.float32)}, folder / SECOND)


def moved(folder: Path) -> None:
    """A tensor that lies in the shard before the one that the index names."""
    first, second = load_file(folder / FIRST), load_file(folder / SECOND)
    first[NORM] = second.pop(NORM)
    save_file(first, folder / FIRST)
    save_file(second, folder / SECOND)


def unindexed(folder: Path) -> None:
    (folder / INDEX).unlink()


def of_mistral(folder: Path) -> None:
    one_file(folder)
    (folder / SINGLE).rename(folder / "consolidated.safetensors")
    (folder / INDEX).unlink()


def pickles(folder: Path) -> None:
    for name in (FIRST, SECOND, INDEX):
        (folder / name).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04")


BUILDS = {
    other_names: (InconsistentCheckpoint, "none of which is there; 'model-00001-of-00002", "one revision"),
    one_file: (InconsistentCheckpoint, "none of which is there; 'model.safetensors' lies", "remove the index"),
    one_missing: (IncompleteCheckpoint, "1 of 2 shards", "finish the download"),
    one_begun: (IncompleteCheckpoint, "'model-00002-of-00002.safetensors.part' is an unfinished", "finish"),
    one_begun_by_the_hub: (IncompleteCheckpoint, "'abc.incomplete' is an unfinished download", "finish"),
    one_begun_by_a_browser: (IncompleteCheckpoint, "'Unconfirmed 1234.crdownload' is an unfinished", "finish"),
    one_more: (InconsistentCheckpoint, "'model.extra' lies in .* the index does not list it", "download it anew"),
    moved: (InconsistentCheckpoint, f"{NORM}' lies in '{FIRST}', but the index puts it into '{SECOND}'", "anew"),
    unindexed: (IncompleteCheckpoint, "2 of several .safetensors files .* no model.safetensors.index.json", "index"),
    of_mistral: (UnsupportedModel, "'consolidated.safetensors' is of Mistral's own layout", "for transformers"),
    pickles: (IncompleteCheckpoint, "no .safetensors file; its 1 pickle files", "from_pretrained.*save_pretrained"),
}


@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build.__name__)
def test_a_refusal_tells_what_happened_and_what_to_do(build: object, small: Path) -> None:
    error, message, hint = BUILDS[build]
    build(small)  # type: ignore[operator]
    with pytest.raises(error, match=message) as refusal:
        registry.open_checkpoint(small)
    assert refusal.match(str(small))
    assert re.search(hint, str(refusal.value.hint))
    assert (small / CONFIG).is_file()
