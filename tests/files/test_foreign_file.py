"""What lies under the name of another file is told by its first bytes; what is a model's own file is left alone."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import pickle
import tarfile
import zipfile
from pathlib import Path

import pytest
import sentencepiece

from quantkit.errors import IncompleteFile, MalformedFile
from quantkit.files.foreign_file import foreign, read_head, refuse_foreign
from quantkit.files.source_file import SourceFile

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4021384\n"


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("config.json", "{}")
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("config.json"), io.BytesIO())
    return buffer.getvalue()


DOWNLOADS = {
    "nothing": (b"", "empty"),
    "a pointer": (POINTER, "a Git LFS pointer to 4,021,384 bytes"),
    "a pointer with CRLF": (POINTER.replace(b"\n", b"\r\n"), "a Git LFS pointer to 4,021,384"),
    "a pointer with an extension": (
        POINTER.replace(b"oid", b"ext-0-foo sha256:" + b"1" * 64 + b"\noid"),
        "a Git LFS pointer to 4,021,384",
    ),
    "an old pointer": (POINTER.replace(b"git-lfs.github.com", b"hawser.github.com"), "a Git LFS pointer"),
    "a pointer cut short": (POINTER[:60], "a Git LFS pointer"),
    "a page": (b"<!DOCTYPE html><html><head>", "an HTML page"),
    "a page after blanks": (b"\n\n  <HTML lang=en>", "an HTML page"),
    "a page after a mark": (b"\xef\xbb\xbf<!doctype html>", "an HTML page"),
    "an error of a store": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "an XML page"),
    "an error in JSON": (b'{"error":"Repository not found"}', "an error message of a server"),
    "an error in JSON with a status": (b'{\n "statusCode": 503, "message": "busy"}', "an error message of a server"),
    "an error in JSON, a detail": (b'{"detail": "Not Found"}', "an error message of a server"),
    "no success in JSON": (b'{"success": false}', "an error message of a server"),
    "an error in words": (b"Invalid username or password.", "an error message of a server"),
    "an error of a proxy": (b"upstream connect error or disconnect/reset before headers", "an error message"),
    "no entry": (b"Entry not found", "an error message of a server"),
    "a number": (b"404: Not Found", "an error message of a server"),
    "zeros": (bytes(4096), "filled with zeros"),
}
FORMATS = {
    "zip": (zipped(), "zip archive"),
    "tar": (tarred(), "tar archive"),
    "gzip": (gzip.compress(b"x"), "gzip"),
    "xz": (lzma.compress(b"x"), "xz"),
    "pickle": (pickle.dumps({"a": 1}, protocol=2), "pickle"),
    "pickle 4": (pickle.dumps({"a": 1}, protocol=4), "pickle"),
    "GGUF": (b"GGUF\3\0\0\0", "GGUF file"),
    "ggjt": (b"tjgg\3\0\0\0", "before GGUF"),
    "ggml": (b"lmgg\3\0\0\0", "before GGUF"),
    "HDF5": (b"\x89HDF\r\n\x1a\n", "HDF5"),
}


@pytest.mark.parametrize("case", DOWNLOADS)
def test_what_a_failed_download_leaves_is_named_with_its_size(case: str, tmp_path: Path) -> None:
    data, words = DOWNLOADS[case]
    (tmp_path / "model.safetensors").write_bytes(data)
    file = SourceFile.open(tmp_path / "model.safetensors")
    with pytest.raises(IncompleteFile, match=words) as refusal:
        refuse_foreign(file, read_head(file))
    assert f"({len(data):,} bytes)" in str(refusal.value)
    assert refusal.value.hint


@pytest.mark.parametrize("case", FORMATS)
def test_another_format_is_named(case: str, tmp_path: Path) -> None:
    data, words = FORMATS[case]
    (tmp_path / "model.bin").write_bytes(data)
    file = SourceFile.open(tmp_path / "model.bin")
    with pytest.raises(MalformedFile, match=words) as refusal:
        refuse_foreign(file, read_head(file))
    assert type(refusal.value) is MalformedFile
    assert refusal.value.hint


OWN = [
    b'{"model_type": "minicpm"}',
    b'{"message": 7}',
    b'{"version": "1.0", "truncation": null}',
    b'{"<error>": 32000}',
    b'{"weight_map": {}}',
    b"{% for message in messages %}<html>{{ message }}{% endfor %}",
    b"Apache License\nVersion 2.0",
    b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\2",
    json.dumps({"errors": "replace"}).encode().replace(b'{"errors"', b'{"add_bos_token": true, "errors"'),
    (64).to_bytes(8, "little") + b'{"a":{}}',
]


@pytest.mark.parametrize("data", OWN)
def test_a_models_own_files_are_let_through(data: bytes) -> None:
    assert foreign(data, len(data)) is None


def test_every_file_of_the_golden_model_is_let_through(golden_model: Path) -> None:
    for path in golden_model.iterdir():
        file = SourceFile.open(path)
        assert foreign(read_head(file), file.size) is None, path.name
    assert sentencepiece.SentencePieceProcessor(str(golden_model / "tokenizer.model")).vocab_size()
