"""What a graph says of its data file, believed only where it stays within that file of its own folder.

Of a tensor `location` is a bare name, `offset` and `length` are numbers of bytes within the file, and nothing else is
said. The file is regular, has no second name on the disk, and lies in the folder (see `quantkit.files.member`). Nothing
is opened before that is known. Source: onnx, "External Data Security".
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.errors import IncompleteFile, MalformedFile, UnsafePath
from quantkit.exporters.onnx.places import DATA_NAME
from quantkit.files.member import open_member
from quantkit.files.source_file import SourceFile

if TYPE_CHECKING:
    import onnx

KEYS = ("location", "offset", "length")


def open_data(path: Path, tensors: Iterable[onnx.TensorProto], size: int) -> SourceFile:
    """The data file of the folder `path`, of at most `size` bytes, in which all external ones of `tensors` lie.

    Raises:
        UnsafePath: a tensor is said to lie elsewhere, or the file has a second name.
        MalformedFile: something else is wrong with what is said, or the file has more bytes.
        IncompleteFile: a tensor ends beyond the file.
        Others: see `open_member`.
    """
    for tensor in tensors:
        if tensor.external_data or tensor.data_location:
            _check_location(tensor, str(path))
    file = open_member(path, DATA_NAME)
    names = file.location.lstat().st_nlink
    if names > 1:
        raise UnsafePath(
            f"{file.path} has {names} names on this disk (hard links), one of which may be anywhere",
            hint="copy the file, and take the copy",
        )
    for tensor in tensors:
        if tensor.external_data:
            _check_extent(tensor, file)
    if file.size > size:
        raise MalformedFile(f"{file.path} has {file.size - size:,} bytes after the last tensor")
    return file


def _said(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _check_location(tensor: onnx.TensorProto, where: str) -> None:
    said, name = _said(tensor), tensor.name[:80]
    unknown = [key for key in said if key not in KEYS]
    if unknown or len(said) != len(tensor.external_data):
        raise MalformedFile(
            f"{where}: tensor {name!r} has an external entry {(unknown or list(said))[0][:80]!r} too many"
        )
    location = said.get("location", "")
    if location != DATA_NAME:
        bare = location and not set(location) & set("/\\\0:") and location not in (".", "..")
        error = MalformedFile if bare else UnsafePath
        raise error(f"{where}: tensor {name!r} is said to lie in {location[:80]!r}; such a graph has {DATA_NAME!r}")


def _check_extent(tensor: onnx.TensorProto, file: SourceFile) -> None:
    said = _said(tensor)
    numbers = [said.get(key, "") for key in ("offset", "length")]
    for key, text in zip(("offset", "length"), numbers, strict=True):
        if not (text.isascii() and text.isdecimal() and len(text) <= 19):
            raise MalformedFile(
                f"{file.path}: tensor {tensor.name[:80]!r} has the {key} {text[:40]!r}, no number of bytes"
            )
    offset, length = map(int, numbers)
    if offset + length > file.size:
        raise IncompleteFile(
            f"{file.path}: tensor {tensor.name[:80]!r} ends at byte {offset + length:,}, the file at {file.size:,}",
            hint="repeat the download, or the copy",
        )
