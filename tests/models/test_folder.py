from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from quantkit import registry
from quantkit.errors import BadOption, InconsistentCheckpoint, MalformedFile, QuantkitError, ReadFailed, UnsafePath
from quantkit.files.shard_index import SHARD_COUNT
from quantkit.files.source_file import SourceFile
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.folder import open_folder
from quantkit.models.layouts.selection import select_weights
from quantkit.models.layouts.small_files import MAX_CONFIG_BYTES
from tests.support.malformed import Case
from tests.support.malformed_folders import (
    CONFIG,
    FIRST,
    FOLDER_CASES,
    INDEX,
    SECOND,
    SINGLE,
    edit_json,
    replace_tensors,
    write_small_checkpoint,
)
from tests.support.tiny import tiny_shapes, tiny_tensors, write_tiny_checkpoint

TENSORS = 2 + 2 * 9  # embedding, final norm, and nine for each of two blocks


def opened(path: Path) -> Checkpoint:
    """As the command line opens it."""
    return registry.exporter("hf").read(path)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_small_checkpoint(tmp_path / "model")


@pytest.mark.parametrize("case", FOLDER_CASES, ids=lambda case: case.name)
def test_a_bad_folder_is_refused_in_one_line_that_names_file_or_tensor(case: Case, small: Path) -> None:
    case.build(small)
    with pytest.raises(QuantkitError) as caught:
        opened(small)
    message = str(caught.value)
    assert type(caught.value) is case.error, message
    for word in (str(small), *case.words):
        assert word in message
    assert message.isprintable()
    assert len(message) < 2 * len(str(small)) + 240


@pytest.mark.parametrize("case", FOLDER_CASES, ids=lambda case: case.name)
def test_a_bad_folder_is_left_as_it_was(case: Case, small: Path) -> None:
    case.build(small)
    before = {path.name: (path.lstat().st_mtime_ns, path.lstat().st_size) for path in small.iterdir()}
    with pytest.raises(QuantkitError):
        opened(small)
    assert {path.name: (path.lstat().st_mtime_ns, path.lstat().st_size) for path in small.iterdir()} == before


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_every_tensor_is_found_in_the_order_of_the_forward_pass(shards: int, tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "model", shards=shards)
    config = json.loads((folder / CONFIG).read_text())
    checkpoint = opened(folder)
    expected = tiny_tensors(config)
    assert {name: view.shape for name, view in checkpoint.weights.items()} == tiny_shapes(config)
    assert list(checkpoint.weights) == [slot.name for slot in checkpoint.spec.slots()]
    for name, view in open_folder(folder).tensors.items():
        assert view.read().tobytes() == expected[name].tobytes()
    assert len(checkpoint.inputs) == shards
    assert all(path.suffix == ".safetensors" and path.parent == folder for path in checkpoint.inputs)
    assert checkpoint.config == config


def test_the_config_is_read_with_a_byte_order_mark_and_crlf(small: Path) -> None:
    config = (small / CONFIG).read_bytes()
    (small / CONFIG).write_bytes(b"\xef\xbb\xbf" + config.replace(b"\n", b"\r\n"))
    assert opened(small).config == json.loads(config)


def test_a_config_of_the_largest_size_is_read(small: Path) -> None:
    config = (small / CONFIG).read_bytes()
    (small / CONFIG).write_bytes(config.ljust(MAX_CONFIG_BYTES))
    assert opened(small).spec.hidden_size == 64
    (small / CONFIG).write_bytes(config.ljust(MAX_CONFIG_BYTES + 1))
    with pytest.raises(MalformedFile):
        opened(small)


def test_what_is_left_aside_is_noted(small: Path) -> None:
    save_file({"a": np.zeros(3, np.float32)}, small / "adapter.safetensors")
    (small / "modeling_minicpm.py").write_text("raise SystemExit")
    (small / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    (small / "x\n\x1b[2J.safetensors").write_bytes(b"")
    edit_json(small / INDEX, lambda index: index["metadata"].update(total_size=1))
    edit_json(small / CONFIG, lambda config: config.update(trust_remote_code=True, _attn_implementation_internal="x/y"))
    assert all(note.isprintable() for note in opened(small).notes)
    notes = "\n".join(opened(small).notes)
    for words in ("auto_map", "trust_remote_code", "_attn_implementation_internal", "adapter.safetensors"):
        assert words in notes
    assert "modeling_minicpm.py (code, never read), pytorch_model.bin (a pickle, never read)" in notes
    assert "total_size says 1 bytes" in notes


def test_a_sound_folder_without_remote_code_is_opened_without_notes(small: Path) -> None:
    edit_json(small / CONFIG, lambda config: config.pop("auto_map"))
    assert opened(small).notes == ()


def test_a_hub_cache_whose_files_are_links_to_blobs_is_opened(small: Path) -> None:
    repository = small.parent / "models--openbmb--MiniCPM4"
    snapshot, blobs = repository / "snapshots" / "abc", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(small.iterdir())):
        path.rename(blobs / f"hash{number}")
        (snapshot / path.name).symlink_to(Path("../../blobs") / f"hash{number}")
    assert len(opened(snapshot).weights) == TENSORS
    (small.parent / "model-link").symlink_to(snapshot)
    assert len(opened(small.parent / "model-link").weights) == TENSORS
    (snapshot / CONFIG).unlink()
    (snapshot / CONFIG).symlink_to("../../../elsewhere.json")
    (small.parent / "elsewhere.json").write_text("{}")
    with pytest.raises(UnsafePath):
        opened(snapshot)


def test_links_inside_the_folder_are_followed(small: Path) -> None:
    (small / "weights").mkdir()
    (small / FIRST).rename(small / "weights" / "x")
    (small / FIRST).symlink_to("weights/x")
    assert len(opened(small).weights) == TENSORS


def test_a_single_file_under_another_name_is_opened(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "model", shards=1)
    (folder / SINGLE).rename(folder / "weights.safetensors")
    assert opened(folder).inputs == (folder / "weights.safetensors",)


def test_an_index_of_one_file_is_followed(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "model", shards=1)
    names = tiny_shapes(json.loads((folder / CONFIG).read_text()))
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, SINGLE)}))
    assert opened(folder).inputs == (folder / SINGLE,)


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path / "file"):
        (tmp_path / "file").write_text("")
        with pytest.raises(BadOption, match="is not a folder"):
            open_folder(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_refused(small: Path) -> None:
    for path in (small / FIRST, small / CONFIG, small):
        path.chmod(0)
        with pytest.raises(ReadFailed, match="Permission denied"):
            opened(small)
        path.chmod(0o755)


def test_a_tied_head_that_repeats_the_embedding_is_dropped_with_a_note(small: Path) -> None:
    replace_tensors(small, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"]}))
    checkpoint = opened(small)
    assert "lm_head.weight" not in checkpoint.weights
    assert any("lm_head.weight" in note for note in checkpoint.notes)


def test_a_tied_head_of_another_dtype_is_refused(small: Path) -> None:
    replace_tensors(
        small,
        lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].astype(np.float32)}),
    )
    with pytest.raises(InconsistentCheckpoint, match=r"lm_head\.weight"):
        opened(small)


def test_tables_that_the_config_determines_are_dropped_with_a_note(small: Path) -> None:
    tables = ("inv_freq", "cos_cached", "sin_cached")
    replace_tensors(
        small,
        lambda tensors: tensors.update(
            {f"model.layers.{i}.self_attn.rotary_emb.{t}": np.zeros(4, np.float32) for i in (0, 1) for t in tables}
        ),
    )
    checkpoint = opened(small)
    assert len(checkpoint.weights) == TENSORS
    assert any("6 tensors add nothing" in note for note in checkpoint.notes)


def test_a_text_model_under_llm_is_read_and_the_rest_left_aside(small: Path) -> None:
    before = {name: view.read().tobytes() for name, view in opened(small).weights.items()}

    def nest(tensors: dict[str, np.ndarray]) -> None:
        text = {f"llm.{name}": tensor for name, tensor in tensors.items()}
        tensors.clear()
        tensors.update(text, **{"vpm.embeddings": np.zeros(3, np.float32), "resampler.kv": np.zeros(3, np.float32)})

    replace_tensors(small, nest)
    edit_json(small / CONFIG, lambda config: config.update(architectures=["MiniCPMV"], model_type="minicpmv"))
    checkpoint = opened(small)
    assert {name: view.read().tobytes() for name, view in checkpoint.weights.items()} == before
    assert checkpoint.spec.architecture == "minicpm"
    told = "only the text model under 'llm.' is read; 2 other tensors are left aside (resampler., vpm.)"
    assert told in checkpoint.notes


def test_mixed_float_dtypes_are_accepted(small: Path) -> None:
    replace_tensors(
        small,
        lambda tensors: tensors.update({n: t.astype(np.float32) for n, t in tensors.items() if "norm" in n}),
    )
    dtypes = {str(view.dtype) for view in opened(small).weights.values()}
    assert dtypes == {"bfloat16", "float32"}


def test_weights_are_selected_whatever_kind_they_are(small: Path) -> None:
    checkpoint = opened(small)
    shuffled = dict(reversed(checkpoint.weights.items()))
    assert select_weights(shuffled, checkpoint.spec, "here") == checkpoint.weights
    assert list(select_weights(shuffled, checkpoint.spec, "here")) == list(checkpoint.weights)


def test_opening_reads_headers_only(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[tuple[Path, int]] = []
    read = SourceFile.read

    def recorded(file: SourceFile, offset: int, size: int) -> np.ndarray:
        reads.append((file.path, offset + size))
        return read(file, offset, size)

    monkeypatch.setattr(SourceFile, "read", recorded)
    assert len(opened(small).weights) == TENSORS
    for name in (FIRST, SECOND):
        header = int.from_bytes((small / name).read_bytes()[:8], "little") + 8
        assert max(end for path, end in reads if path == small / name) == header


def test_shard_counts_are_found_in_names() -> None:
    assert SHARD_COUNT.search(SECOND)[1] == "00002"
    assert SHARD_COUNT.search(SINGLE) is None


def test_an_index_of_a_hundred_thousand_tensors_is_read(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text("{}")
    names = [f"model.layers.{i}.w" for i in range(100_000)]
    save_file({name: np.zeros(0, np.uint8) for name in names[::1000]}, tmp_path / "a.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, "a.safetensors")}))
    with pytest.raises(InconsistentCheckpoint, match=r"'model\.layers\.1\.w'"):
        open_folder(tmp_path)
