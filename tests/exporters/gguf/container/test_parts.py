"""Models written in several GGUF files of limited size: the same model, from the folder and from any part."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest

from quantkit import registry
from quantkit.artifacts.manifest import check_files, read_manifest
from quantkit.artifacts.publishing import Published, publish
from quantkit.errors import BadOption, IncompleteCheckpoint, OutputExists, VerificationFailed
from quantkit.exporters.gguf import blocks
from quantkit.exporters.gguf.container.file import read_gguf
from quantkit.exporters.gguf.container.header import entry
from quantkit.exporters.gguf.container.parts import planned_files
from quantkit.exporters.gguf.container.split import read_model
from quantkit.exporters.gguf.container.types import ValueType
from quantkit.files.planned_files import PlannedFile, Unit
from quantkit.models.checkpoint import Checkpoint
from quantkit.protocols import ExportOptions
from tests.support.gguf_models import CONFIG, EXPORTER, write
from tests.support.gguf_models import dense as dense_model

LIMIT = 300_000
SPLIT_KEYS = {"split.no", "split.count", "split.tensors.count"}


UNTIED = {**CONFIG, "tie_word_embeddings": False}


def dense(files: Mapping[str, bytes] | None = None) -> Checkpoint:
    return dense_model(UNTIED, files=files)


def split(folder: Path, limit: int = LIMIT, *, overwrite: bool = False, **options: str) -> Published:
    planned = EXPORTER.prepare(dense(), ExportOptions(type="q8_0", split_bytes=limit, **options))
    return publish(planned, folder, overwrite=overwrite)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return split(tmp_path_factory.mktemp("parts") / "model").path


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.gguf"))


def test_parts_are_no_larger_than_asked_for_and_named_as_llama_cpp_names_them(folder: Path) -> None:
    names = [path.name for path in parts(folder)]
    assert names == [f"model-{number:05}-of-{len(names):05}.gguf" for number in range(1, len(names) + 1)]
    assert len(names) > 2
    assert all(path.stat().st_size <= LIMIT for path in parts(folder))
    assert {path.name for path in folder.iterdir()} == {*names, "quantkit.json"}


def test_the_parts_hold_what_one_file_holds(folder: Path, tmp_path: Path) -> None:
    whole = read_gguf(write(dense(), tmp_path / "whole.gguf", "q8_0"))
    joined = read_model(folder)
    assert {key: value for key, value in joined.metadata.items() if key not in SPLIT_KEYS} == whole.metadata
    assert list(joined.tensors) == list(whole.tensors)
    for name, info in whole.tensors.items():
        assert joined.tensors[name].type is info.type
        assert np.array_equal(joined.rows(name, 0, info.shape[0]), whole.rows(name, 0, info.shape[0])), name


def test_gguf_py_reads_every_part(folder: Path) -> None:
    tensors: list[str] = []
    for number, path in enumerate(parts(folder)):
        reader = gguf.GGUFReader(path)
        tensors += [tensor.name for tensor in reader.tensors]
        said = {key: reader.fields[key] for key in SPLIT_KEYS}
        assert said["split.no"].contents() == number
        assert said["split.count"].contents() == len(parts(folder))
        assert said["split.no"].types == said["split.count"].types == [gguf.GGUFValueType.UINT16]
        assert said["split.tensors.count"].types == [gguf.GGUFValueType.INT32]
        own = {key for key in reader.fields if not key.startswith("GGUF.")}
        assert (own == SPLIT_KEYS) == (number > 0)
    assert len(tensors) == len(set(tensors)) == said["split.tensors.count"].contents()


def unit(size: int) -> Unit:
    return Unit("t", size, lambda: (b"\1" * size,))


def planned(limit: int | None, count: int = 3, keys: int = 1) -> tuple[PlannedFile, ...]:
    """`count` tensors of 32 floats each, in files of at most `limit` bytes."""
    infos = [(f"{number}", blocks.F32, (32,)) for number in range(count)]
    entries = [entry(f"k{number}", ValueType.UINT32, number) for number in range(keys)]
    return planned_files(entries, infos, [unit(128)] * count, limit)


def written(file: PlannedFile) -> bytes:
    return b"".join(bytes(piece) for unit in file.units for piece in unit.produce())


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def test_a_later_part_is_the_literal_bytes() -> None:
    second = written(planned(384)[1])
    keys = text(b"split.no") + struct.pack("<IH", 2, 1) + text(b"split.count") + struct.pack("<IH", 2, 3)
    keys += text(b"split.tensors.count") + struct.pack("<Ii", 5, 3)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 3) + keys + text(b"1") + struct.pack("<IQIQ", 1, 32, 0, 0)
    assert second == head + bytes(-len(head) % 32) + b"\1" * 128


def test_a_part_is_filled_to_the_last_byte_that_it_may_have() -> None:
    (whole,) = planned(1 << 30)
    assert len(planned(whole.size)) == 1
    assert [file.size for file in planned(whole.size - 1)] == [whole.size - 128 - 32, 288]
    assert all(file.size == len(written(file)) for file in planned(whole.size - 1))


def test_the_first_part_may_hold_keys_alone() -> None:
    files = planned(1000, keys=40)
    assert len(files) == 2
    assert [unit.name for unit in files[0].units] == ["header"]
    assert sum(unit.name == "t" for unit in files[1].units) == 3


@pytest.mark.parametrize(("limit", "keys", "cause"), [(287, 1, "tensor '0'"), (600, 40, "the keys of the model")])
def test_a_limit_that_something_exceeds_alone_is_refused_with_the_least(limit: int, keys: int, cause: str) -> None:
    with pytest.raises(BadOption, match=f"too small: {cause}.* alone makes a file of") as refusal:
        planned(limit, keys=keys)
    least = int(str(refusal.value.hint).rpartition(" ")[2])
    assert planned(least, keys=keys)
    with pytest.raises(BadOption):
        planned(least - 1, keys=keys)


def test_more_parts_than_can_be_named_are_refused() -> None:
    with pytest.raises(BadOption, match="makes 70,000 files"):
        planned(300, count=70_000)


def test_twice_gives_the_same_bytes_and_an_existing_folder_is_replaced_only_when_asked(
    folder: Path, tmp_path: Path
) -> None:
    again = split(tmp_path / "model").path
    assert [path.read_bytes() for path in parts(again)] == [path.read_bytes() for path in parts(folder)]
    with pytest.raises(OutputExists):
        split(again)
    split(again, 2 * LIMIT, overwrite=True)
    assert 1 < len(parts(again)) < len(parts(folder))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "diary.txt").write_text("mine")
    with pytest.raises(OutputExists, match="not written by quantkit"):
        split(tmp_path / "other", overwrite=True)


def test_a_folder_of_parts_is_not_written_over_while_it_is_read(folder: Path) -> None:
    back = EXPORTER.read(folder)
    assert back.inputs == tuple(parts(folder))
    with pytest.raises(OutputExists, match="holds, the input"):
        publish(EXPORTER.prepare(back, ExportOptions(split_bytes=LIMIT)), folder, inputs=back.inputs, overwrite=True)


def test_a_split_file_is_split_anew_block_for_block(folder: Path, tmp_path: Path) -> None:
    back = registry.open_checkpoint(folder)
    publish(EXPORTER.prepare(back, ExportOptions()), tmp_path / "one.gguf", inputs=back.inputs)
    one, many = read_model(tmp_path / "one.gguf"), read_model(folder)
    for name, info in one.tensors.items():
        assert np.array_equal(many.rows(name, 0, info.shape[0]), one.rows(name, 0, info.shape[0])), name


def test_the_manifest_is_found_from_the_folder_and_from_every_part(folder: Path, tmp_path: Path) -> None:
    for path in (folder, *parts(folder)):
        manifest = read_manifest(path)
        assert manifest is not None
        assert manifest["options"] == {"type": "q8_0", "arch": "native", "split_bytes": LIMIT}
        assert check_files(path) == []
    stranger = write(dense(), tmp_path / "whole.gguf", "q8_0")
    (tmp_path / "quantkit.json").write_bytes((folder / "quantkit.json").read_bytes())
    (tmp_path / "whole.gguf.quantkit.json").unlink()
    assert read_manifest(stranger) is None


def test_damage_in_any_part_is_found_from_any_other(tmp_path: Path) -> None:
    first, second, *_ = parts(split(tmp_path / "model").path)
    data = bytearray(second.read_bytes())
    data[-40] ^= 1
    second.write_bytes(data)
    for path in (tmp_path / "model", first):
        with pytest.raises(VerificationFailed, match=r"'model-00002-of-.*' was changed"):
            check_files(path)
    second.unlink()
    with pytest.raises(IncompleteCheckpoint, match=r"model-00002-of-.* is missing"):
        registry.open_checkpoint(tmp_path / "model")


def test_folders_of_several_models_or_of_another_kind_are_not_taken(folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}-00001-of-00002.gguf").write_bytes(b"GGUF")
    assert not EXPORTER.recognizes(tmp_path)
    with pytest.raises(BadOption, match="holds no model itself, but a GGUF file"):
        registry.open_checkpoint(tmp_path)
    (tmp_path / "b-00001-of-00002.gguf").unlink()
    assert EXPORTER.recognizes(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert not EXPORTER.recognizes(tmp_path)
    assert EXPORTER.recognizes(folder)


@pytest.mark.engine("llama-cpp")
def test_llama_cpp_loads_the_parts_and_computes_the_same(tmp_path: Path, tokenizer_files: dict[str, bytes]) -> None:
    source = dense(files=tokenizer_files)
    whole = write(source, tmp_path / "whole.gguf", "q8_0")
    publish(EXPORTER.prepare(source, ExportOptions(type="q8_0", split_bytes=LIMIT)), tmp_path / "model")
    found = []
    for path in (whole, tmp_path / "model", parts(tmp_path / "model")[-1]):
        with registry.runtime("llama-cpp").open(path) as session:
            found.append(session.next_logits([1, 300, 400]))
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])
