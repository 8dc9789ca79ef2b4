"""What can lie under a file's name when it is not that file: a pointer, an error page, an archive, another format.

The first bytes tell. Every kind has its cause and its mend, so that a refusal does not speak of wrong offsets where
the download failed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from quantkit.errors import IncompleteFile, MalformedFile
from quantkit.files.source_file import SourceFile

HEAD_BYTES = 512
"""First bytes of a file that are looked at: those of a tar archive up to its mark, at 257, and more."""

_REPEAT = "the download failed; repeat it"
_PULL = "run `git lfs pull` there"
_UNPACK = "unpack it first"
_CONVERT = "never opened, because it can run code; convert it with a tool that you trust"
_TEXTS: tuple[tuple[bytes, str, str], ...] = (
    (b"<!doctype", "an HTML page", _REPEAT),
    (b"<html", "an HTML page", _REPEAT),
    (b"<head", "an HTML page", _REPEAT),
    (b"<?xml", "an XML page", _REPEAT),
    (b"<error", "an XML page", _REPEAT),
    *(
        (text, "an error message of a server", "the download failed; log in if the model is gated, and repeat it")
        for text in (
            b"access to model",
            b"bad gateway",
            b"entry not found",
            b"error code:",
            b"forbidden",
            b"internal server error",
            b"invalid credentials",
            b"invalid username or password",
            b"not found",
            b"404",
            b"repository not found",
            b"service unavailable",
            b"too many requests",
            b"unauthorized",
            b"upstream connect error",
        )
    ),
)
"""First words, in lower case, of what servers send in place of a file."""
_MAGICS: tuple[tuple[bytes, str, str], ...] = (
    (b"PK\x03\x04", "a zip archive, or a PyTorch pickle, which is one", _CONVERT),
    *((b"\x80" + bytes([protocol]), "a Python pickle", _CONVERT) for protocol in range(2, 6)),
    (b"\x1f\x8b", "compressed with gzip", _UNPACK),
    (b"\xfd7zXZ\0", "compressed with xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", _UNPACK),
    (b"BZh", "compressed with bzip2", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
    (b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (b"GGUF", "a GGUF file under a wrong name", "rename it to .gguf"),
    *(
        (magic, "of a format that llama.cpp had before GGUF", "convert the original model anew, or find it as GGUF")
        for magic in (b"lmgg", b"fmgg", b"tjgg", b"algg")
    ),
    (b"\x89HDF", "an HDF5 file, as Keras and TensorFlow write", "take the safetensors version of the model"),
    (b"\x93NUMPY", "an array of numpy", "take the safetensors version of the model"),
)
_LONGEST_MESSAGE = 4096
"""Bytes of a file that can be a server's message in words."""
_BLANKS = b"\xef\xbb\xbf \t\r\n"
"""What may stand before a text: the bytes of a byte order mark, and blanks."""
_ZEROS = 64
"""Bytes of zeros that no file begins with."""
_LFS = re.compile(rb"version https://(?:git-lfs|hawser)\.")
_LFS_SIZE = re.compile(rb"\nsize (\d{1,18})\s*$")
_JSON_ERROR = re.compile(
    rb'\{\s*"(?:(?:errors?|message|detail|msg)"\s*:\s*["\[{]|(?:code|status|statuscode)"\s*:\s*"?[45]\d\d\b'
    rb'|success"\s*:\s*false)'
)


@dataclass(frozen=True, slots=True)
class Foreign:
    """What a file is instead, and how to mend it. incomplete: whether the right file is still to be downloaded."""

    what: str
    hint: str
    incomplete: bool = True


def foreign(head: bytes, size: int) -> Foreign | None:
    """What a file is that begins with `head` and holds `size` bytes, if it is none that a model is made of."""
    if not size:
        return Foreign("empty", _REPEAT)
    if len(head) >= _ZEROS and not any(head):
        return Foreign("filled with zeros at its beginning", "the download is incomplete; repeat it")
    return _pointer(head) or _message(head, size) or _other_format(head)


def _pointer(head: bytes) -> Foreign | None:
    if not _LFS.match(head):
        return None
    size = _LFS_SIZE.search(head)
    to = f" to {int(size[1]):,} bytes" if size else ""
    return Foreign(f"a Git LFS pointer{to}, not the file itself", _PULL)


def _message(head: bytes, size: int) -> Foreign | None:
    """What a server sends in place of a file."""
    start = head.lstrip(_BLANKS).lower()
    if _JSON_ERROR.match(start):
        return Foreign("an error message of a server, not the file itself", _REPEAT)
    for text, what, hint in _TEXTS:
        if start.startswith(text) and (text[:1] == b"<" or size <= _LONGEST_MESSAGE):
            return Foreign(f"{what}, not the file itself", hint)
    return None


def _other_format(head: bytes) -> Foreign | None:
    for magic, what, hint in _MAGICS:
        if head.startswith(magic):
            return Foreign(what, hint, incomplete=False)
    return Foreign("a tar archive", _UNPACK, incomplete=False) if head[257:262] == b"ustar" else None


def read_head(file: SourceFile) -> bytes:
    """The first bytes of `file`, at most `HEAD_BYTES`; raises what `SourceFile.read` does."""
    return file.read(0, min(file.size, HEAD_BYTES)).tobytes()


def refuse_other_content(file: SourceFile, head: bytes) -> None:
    """Raise for a small file of a model's folder that begins with `head` and is `foreign`, or JSON without its end.

    Raises:
        IncompleteFile, MalformedFile: see `refuse_foreign`.
    """
    refuse_foreign(file, head)
    if file.path.name.endswith(".json"):
        _refuse_cut_object(file, head)


def _refuse_cut_object(file: SourceFile, head: bytes) -> None:
    """Raise `IncompleteFile` for a JSON object that begins with `head` and has no end; reads the last bytes."""
    if head.lstrip(_BLANKS)[:1] != b"{":
        return
    tail = file.read(max(0, file.size - HEAD_BYTES), min(file.size, HEAD_BYTES)).tobytes().rstrip()
    if tail and not tail.endswith(b"}"):
        raise IncompleteFile(
            f"{file.path} ends in the middle, after {file.size:,} bytes",
            hint="the download is incomplete; repeat it",
        )


def refuse_foreign(file: SourceFile, head: bytes) -> None:
    """Raise for a file that begins with `head` and is `foreign`.

    Raises:
        IncompleteFile: a pointer, a page or nothing, where the right file is still to be downloaded.
        MalformedFile: an archive or a file of another format.
    """
    found = foreign(head, file.size)
    if found is not None:
        error = IncompleteFile if found.incomplete else MalformedFile
        raise error(f"{file.path} is {found.what} ({file.size:,} bytes)", hint=found.hint)
