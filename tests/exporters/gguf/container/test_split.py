"""Models in several GGUF files: split by gguf-py, read whole from any part, and refused where parts do not fit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from quantkit import registry
from quantkit.errors import IncompleteCheckpoint, IncompleteFile, InconsistentCheckpoint, MalformedFile, UnsafePath
from quantkit.exporters.gguf.container.split import read_model
from quantkit.models.checkpoint import Checkpoint
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.schemes.affine_groups import AffineGroups
from tests.support.gguf_models import EXPORTER, quantized, write

U16, I32 = gguf.GGUFValueType.UINT16, gguf.GGUFValueType.INT32
NAME = "m-{:05}-of-00003.gguf"
Keys = dict[str, tuple[Any, gguf.GGUFValueType, gguf.GGUFValueType | None] | None]


def rewrite(source: Path, target: Path, *, keys: Keys | None = None, tensors: int = 0, drop: str = "") -> Path:
    """Copy a GGUF file with gguf-py; `keys` are set or, if None, left out; split where `tensors` says how many."""
    reader = gguf.GGUFReader(source)
    architecture = reader.fields.get("general.architecture")
    writer = gguf.GGUFWriter(target, architecture.contents() if architecture else "", split_max_tensors=tensors)
    if architecture is None:
        writer.kv_data[0].clear()
    changed = keys or {}
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture" and key not in changed:
            kind = {"sub_type": field.types[-1]} if field.types[0] == gguf.GGUFValueType.ARRAY else {}
            writer.add_key_value(key, field.contents(), field.types[0], **kind)
    for key, entry in changed.items():
        if entry is not None:
            value, kind, inner = entry
            writer.add_key_value(key, value, kind, **({} if inner is None else {"sub_type": inner}))
    for tensor in reader.tensors:
        if tensor.name != drop:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(quantized(AffineGroups(bits=4, group_size=32)), tmp_path_factory.mktemp("split") / "whole.gguf")


@pytest.fixture(scope="module")
def split(whole: Path) -> Path:
    """A folder with the three parts of `whole`."""
    folder = whole.parent / "parts"
    folder.mkdir()
    count = len(gguf.GGUFReader(whole).tensors)
    rewrite(whole, folder / "m.gguf", tensors=-(-count // 3))
    assert sorted(path.name for path in folder.iterdir()) == [NAME.format(number) for number in (1, 2, 3)]
    return folder


@pytest.fixture
def parts(split: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(split, tmp_path / "parts"))


def numbers(checkpoint: Checkpoint) -> dict[str, str]:
    values = {name: weight.read() for name, weight in checkpoint.weights.items()}
    return {
        name: value.numbers_digest() if isinstance(value, QuantizedTensor) else value.tobytes().hex()
        for name, value in values.items()
    }


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_split_model_is_read_whole_from_any_part(number: int, split: Path, whole: Path) -> None:
    checkpoint, expected = registry.open_checkpoint(split / NAME.format(number)), EXPORTER.read(whole)
    assert checkpoint.path == split / NAME.format(1)
    assert checkpoint.inputs == tuple(split / NAME.format(part) for part in (1, 2, 3))
    assert (checkpoint.spec, checkpoint.config) == (expected.spec, expected.config)
    assert numbers(checkpoint) == numbers(expected)


def test_the_parts_of_a_cached_model_are_found_among_its_links(split: Path, tmp_path: Path, whole: Path) -> None:
    snapshot, blobs = tmp_path / "models--o--m" / "snapshots" / "abc", tmp_path / "models--o--m" / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    for number in (1, 2, 3):
        shutil.copy(split / NAME.format(number), blobs / f"{number}")
        (snapshot / NAME.format(number)).symlink_to(f"../../blobs/{number}")
    assert numbers(registry.open_checkpoint(snapshot / NAME.format(2))) == numbers(EXPORTER.read(whole))


def test_links_of_the_users_own_to_all_parts_are_followed(split: Path, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        (tmp_path / NAME.format(number)).symlink_to(split / NAME.format(number))
    assert len(read_model(tmp_path / NAME.format(3)).files) == 3
    (tmp_path / NAME.format(2)).unlink()
    (tmp_path / NAME.format(2)).symlink_to("/etc/passwd")
    with pytest.raises(UnsafePath):
        read_model(tmp_path / NAME.format(3))


WHOLE: dict[str, Keys] = {
    "joined by llama-gguf-split": {
        "split.no": (0, U16, None),
        "split.count": (0, U16, None),
        "split.tensors.count": (20, I32, None),
    },
    "of one part": {
        "split.no": (0, U16, None),
        "split.count": (1, U16, None),
        "split.tensors.count": (20, I32, None),
    },
    "a count of 0 alone": {"split.count": (0, U16, None)},
    "a count of 1 alone": {"split.count": (1, U16, None)},
    "a number of tensors alone": {"split.tensors.count": (20, I32, None)},
}


@pytest.mark.parametrize("case", WHOLE)
def test_a_file_that_is_whole_by_its_keys_is_read(case: str, whole: Path, tmp_path: Path) -> None:
    path = rewrite(whole, tmp_path / "joined.gguf", keys=WHOLE[case])
    assert numbers(registry.open_checkpoint(path)) == numbers(EXPORTER.read(whole))


T = gguf.GGUFValueType
STRANGE: dict[str, tuple[Keys, str]] = {
    "a count that is an array": ({"split.count": ([3], T.ARRAY, U16)}, "split.count must be of type UINT16"),
    "a count that is two numbers": ({"split.count": ([2, 3], T.ARRAY, I32)}, "split.count must be"),
    "a count that is a text": ({"split.count": ("3", T.STRING, None)}, "split.count must be of type UINT16"),
    "a count that is a fraction": ({"split.count": (3.0, T.FLOAT32, None)}, "split.count must be of type UINT16"),
    "a count that is true": ({"split.count": (True, T.BOOL, None)}, "split.count must be of type UINT16"),
    "a count of another width": ({"split.count": (3, T.UINT32, None)}, "split.count must be of type UINT16"),
    "a negative count": ({"split.count": (-3, T.INT16, None)}, "split.count must be of type UINT16"),
    "a negative number": ({"split.no": (-1, T.INT16, None)}, "split.no must be of type UINT16"),
    "a number that is an array": ({"split.no": ([0], T.ARRAY, U16)}, "split.no must be of type UINT16"),
    "a number beyond the count": ({"split.no": (3, U16, None)}, "split.no 3 is not below split.count 3"),
    "a number beyond no parts": ({"split.no": (1, U16, None), "split.count": (0, U16, None)}, "is not below"),
    "a negative number of tensors": ({"split.tensors.count": (-1, I32, None)}, "split.tensors.count is -1"),
    "tensors counted in a text": ({"split.tensors.count": ("9", T.STRING, None)}, "must be of type INT32"),
    "no number": ({"split.no": None}, "'split.no' is missing"),
    "no count": ({"split.count": None}, "'split.count' is missing"),
    "no number of tensors": ({"split.tensors.count": None}, "'split.tensors.count' is missing"),
    "the number of another part": (
        {"split.no": (1, U16, None)},
        "part 2 of 3 by its keys, which its name does not say",
    ),
    "the count of another model": ({"split.count": (5, U16, None)}, "part 1 of 5 by its keys"),
}


@pytest.mark.parametrize("case", STRANGE)
def test_strange_keys_of_a_part_are_refused(case: str, parts: Path) -> None:
    keys, message = STRANGE[case]
    path = parts / NAME.format(1)
    rewrite(path, parts / "new", keys=keys).replace(path)
    with pytest.raises(MalformedFile, match=message) as refusal:
        registry.open_checkpoint(path)
    assert str(path) in str(refusal.value)


def missing(folder: Path) -> None:
    (folder / NAME.format(2)).unlink()


def begun(folder: Path) -> None:
    (folder / NAME.format(2)).rename(folder / f"{NAME.format(2)}.part")


def being_filled(folder: Path) -> None:
    (folder / f"{NAME.format(2)}.aria2").write_bytes(b"")


def cut(folder: Path) -> None:
    data = (folder / NAME.format(2)).read_bytes()
    (folder / NAME.format(2)).write_bytes(data[:-100])


def pointed_to(folder: Path) -> None:
    (folder / NAME.format(2)).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def linked_away(folder: Path) -> None:
    (folder / NAME.format(2)).rename(folder.parent / "elsewhere.gguf")
    (folder / NAME.format(2)).symlink_to("../elsewhere.gguf")


def swapped(folder: Path) -> None:
    (folder / NAME.format(2)).rename(folder / "x")
    (folder / NAME.format(3)).rename(folder / NAME.format(2))
    (folder / "x").rename(folder / NAME.format(3))


def twice(folder: Path) -> None:
    """The third part under its own keys, with the tensors of the second."""
    keys: Keys = {"split.no": (2, U16, None)}
    rewrite(folder / NAME.format(2), folder / "new", keys=keys).replace(folder / NAME.format(3))


def of_another_model(folder: Path) -> None:
    keys: Keys = {"split.tensors.count": (7, I32, None)}
    rewrite(folder / NAME.format(2), folder / "new", keys=keys).replace(folder / NAME.format(2))


def lacking_a_tensor(folder: Path) -> None:
    path = folder / NAME.format(2)
    rewrite(path, folder / "new", drop=gguf.GGUFReader(path).tensors[0].name).replace(path)


def with_other_keys(folder: Path) -> None:
    keys: Keys = {"minicpm.rope.freq_base": (5.0, T.FLOAT32, None)}
    rewrite(folder / NAME.format(2), folder / "new", keys=keys).replace(folder / NAME.format(2))


def whole_itself(folder: Path) -> None:
    keys: Keys = dict.fromkeys(("split.no", "split.count", "split.tensors.count"))
    rewrite(folder / NAME.format(2), folder / "new", keys=keys).replace(folder / NAME.format(2))


SPOILED: dict[Callable[[Path], None], tuple[type[Exception], str]] = {
    missing: (IncompleteCheckpoint, r"m-00002-of-00003\.gguf is missing"),
    begun: (IncompleteCheckpoint, r"m-00002-of-00003\.gguf is missing; .*\.part' is an unfinished download"),
    being_filled: (IncompleteFile, r"m-00002-of-00003\.gguf is an unfinished download"),
    cut: (IncompleteFile, r"m-00002-of-00003\.gguf: tensor .* left"),
    pointed_to: (IncompleteFile, r"m-00002-of-00003\.gguf is a Git LFS pointer to 9 bytes"),
    linked_away: (UnsafePath, r"m-00002-of-00003\.gguf is a link to a file outside"),
    swapped: (InconsistentCheckpoint, r"m-00002-of-00003\.gguf: part 3 of 3 by its keys, part 2 of 3 by its name"),
    twice: (InconsistentCheckpoint, r"m-00003-of-00003\.gguf: tensor .* lies in m-00002-of-00003\.gguf as well"),
    of_another_model: (InconsistentCheckpoint, r"m-00002-of-00003\.gguf: split\.tensors\.count is 7, .* two models"),
    lacking_a_tensor: (InconsistentCheckpoint, r"the 3 parts hold \d+ tensors, split\.tensors\.count says \d+"),
    with_other_keys: (InconsistentCheckpoint, r"m-00002-of-00003\.gguf: key 'minicpm\.rope\.freq_base' is not what"),
    whole_itself: (InconsistentCheckpoint, r"m-00002-of-00003\.gguf: a whole model by its keys"),
}


@pytest.mark.parametrize("spoil", SPOILED, ids=lambda spoil: spoil.__name__)
def test_parts_that_do_not_fit_are_refused_by_name(spoil: Callable[[Path], None], parts: Path) -> None:
    error, message = SPOILED[spoil]
    spoil(parts)
    with pytest.raises(error, match=message) as refusal:
        registry.open_checkpoint(parts / NAME.format(1))
    assert refusal.value.hint  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["model.gguf", "m-00001-of-00004.gguf", "m-1-of-3.gguf", "m-00002-of-00003.gguf"])
def test_a_part_under_another_name_is_refused_with_its_own(name: str, split: Path, tmp_path: Path) -> None:
    shutil.copy(split / NAME.format(1), tmp_path / name)
    with pytest.raises(MalformedFile, match="part 1 of 3 by its keys, which its name does not say") as refusal:
        registry.open_checkpoint(tmp_path / name)
    assert "-00001-of-00003.gguf" in str(refusal.value.hint)


@pytest.mark.engine("llama-cpp")
def test_llama_cpp_computes_the_same_with_parts_as_with_the_whole(
    tmp_path: Path, tokenizer_files: dict[str, bytes]
) -> None:
    whole = write(quantized(AffineGroups(bits=4, group_size=32), files=tokenizer_files), tmp_path / "whole.gguf")
    rewrite(whole, tmp_path / "m.gguf", tensors=-(-len(gguf.GGUFReader(whole).tensors) // 3))
    rows = []
    for path in (whole, *(tmp_path / NAME.format(number) for number in (1, 2))):
        with registry.runtime("llama-cpp").open(path) as session:
            rows.append(session.next_logits([1, 300, 400]))
    assert np.array_equal(rows[0], rows[1])
    assert np.array_equal(rows[0], rows[2])
