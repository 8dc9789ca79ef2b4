"""The types of another GGUF file of the same model, whoever made it: a mixture that no file type names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quantkit.errors import BadOption, UnsupportedSpec
from quantkit.exporters.gguf.blocks import BlockType
from quantkit.exporters.gguf.container.file import GGUFFile
from quantkit.exporters.gguf.container.split import read_model
from quantkit.exporters.gguf.mixture.file_types import FILE_TYPES, FileType


@dataclass(frozen=True, slots=True)
class Example:
    """An opened file whose types are taken."""

    file: GGUFFile

    @classmethod
    def open(cls, path: Path) -> Example:
        """Read the header of `path`, or of all its parts; raises what `read_model` raises."""
        return cls(read_model(path))

    @property
    def kind(self) -> FileType:
        """What the file calls itself; raises `BadOption` for a type of files that are not written."""
        number = self.file.metadata.get("general.file_type")
        for kind in FILE_TYPES.values():
            if kind.id == number:
                return kind
        raise BadOption(
            f"{self.file.path} is of no file type that is written (general.file_type is {number})",
            hint="add --type, which says what the new file calls itself",
        )

    def check(self, matrices: Mapping[str, tuple[int, ...]]) -> None:
        """Raise `BadOption` for a file of another model, given the shapes of ours by GGUF's names."""
        theirs = {name: info.shape for name, info in self.file.tensors.items() if len(info.shape) > 1}
        for name in sorted({*matrices, *theirs}):
            ours, there = matrices.get(name), theirs.get(name)
            if ours != there:
                raise BadOption(
                    f"--like {self.file.path} is of another model: {name} is {there or 'absent'} there, and "
                    f"{ours or 'absent'} here",
                    hint="name a file that was made of this model",
                )

    def type_of(self, name: str, writable: Mapping[str, BlockType]) -> BlockType:
        """What a matrix is there; raises `UnsupportedSpec` for a type that is not among `writable`."""
        found = self.file.tensors[name].type
        if found.name.lower() not in writable:
            raise UnsupportedSpec(
                f"--like {self.file.path}: {name} is {found.name.lower()}, which is not written",
                hint=f"add --tensor-type {name.removesuffix('.weight')}=TYPE with one of: {', '.join(writable)}",
            )
        return found
