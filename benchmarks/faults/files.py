"""Faults of files: what copying, downloading and tidying up do to an artifact. The manifest stays as it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.faults.fault import FILE_TRIALS, Fault, Level
from quantkit.artifacts.manifest import manifest_path


def weights_of(path: Path) -> Path:
    """The file that holds the weights."""
    return max(path.glob("*.safetensors"), key=lambda file: file.stat().st_size) if path.is_dir() else path


def truncate(path: Path) -> None:
    """The last thousand bytes are missing."""
    file = weights_of(path)
    file.write_bytes(file.read_bytes()[:-1000])


def flip_bit(path: Path) -> None:
    """One bit of the weights."""
    file = weights_of(path)
    data = bytearray(file.read_bytes())
    data[len(data) * 2 // 3] ^= 1
    file.write_bytes(data)


def append(path: Path) -> None:
    """A few bytes more at the end."""
    with weights_of(path).open("ab") as file:
        file.write(b"more")


def zero_page(path: Path) -> None:
    """One page of zeros, as a disk that lied leaves it."""
    file = weights_of(path)
    data = bytearray(file.read_bytes())
    start = len(data) // 2 // 4096 * 4096
    data[start : start + 4096] = bytes(4096)
    file.write_bytes(data)


def empty(path: Path) -> None:
    """Nothing but the name."""
    weights_of(path).write_bytes(b"")


def rename(path: Path) -> None:
    """The tokenizer under another name."""
    (path / "tokenizer.model").rename(path / "tokenizer.old")


def remove(path: Path) -> None:
    """The tokenizer's settings are missing."""
    (path / "tokenizer_config.json").unlink()


def edit_config(path: Path) -> None:
    """A hand-made change of config.json."""
    config = json.loads((path / "config.json").read_bytes())
    (path / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-6}))


def remove_manifest(path: Path) -> None:
    """No manifest."""
    manifest_path(path).unlink()


def empty_manifest(path: Path) -> None:
    """A manifest that lists no file."""
    file = manifest_path(path)
    file.write_text(json.dumps({**json.loads(file.read_bytes()), "files": {}}))


def break_manifest(path: Path) -> None:
    """Half a manifest."""
    file = manifest_path(path)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def foreign_manifest(path: Path) -> None:
    """The same names and sizes, other digests."""
    file = manifest_path(path)
    manifest = json.loads(file.read_bytes())
    entries = {name: {**entry, "sha256": entry["sha256"][::-1]} for name, entry in manifest["files"].items()}
    file.write_text(json.dumps({**manifest, "files": entries}))


def foreign_weights(path: Path) -> None:
    """The weights of another run: as many bytes, all sound."""
    file = weights_of(path)
    data = bytearray(file.read_bytes())
    data[-4096:-2048], data[-2048:] = data[-2048:], data[-4096:-2048]
    file.write_bytes(data)


def add_weights(path: Path) -> None:
    """Weights that the manifest does not list, which a loader may take for the model's."""
    shutil.copy(weights_of(path), path / "consolidated.safetensors")


BOTH: Mapping[str, Callable[[Path], None]] = {
    "weights truncated": truncate,
    "one bit flipped": flip_bit,
    "bytes appended": append,
    "a page of zeros": zero_page,
    "weights empty": empty,
    "two pieces of the weights exchanged": foreign_weights,
    "manifest missing": remove_manifest,
    "manifest lists nothing": empty_manifest,
    "manifest cut in half": break_manifest,
    "manifest with other digests": foreign_manifest,
}
FOLDER: Mapping[str, Callable[[Path], None]] = {
    "tokenizer renamed": rename,
    "tokenizer_config.json missing": remove,
    "config.json edited": edit_config,
    "a second file of weights": add_weights,
}

FAULTS = tuple(
    Fault(name=name, kind="files", level=Level.BYTES, change=change, trials=FILE_TRIALS, containers=containers)
    for changes, containers in ((BOTH, ("folder", "gguf")), (FOLDER, ("folder",)))
    for name, change in changes.items()
)
