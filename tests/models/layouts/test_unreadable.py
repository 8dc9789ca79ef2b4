"""A path that is no model is told for what it is, with what to do."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from quantkit import registry
from quantkit.errors import (
    BadOption,
    IncompleteCheckpoint,
    IncompleteFile,
    MalformedFile,
    QuantkitError,
    UnsupportedModel,
)
from tests.files.test_foreign_file import POINTER
from tests.support.malformed_folders import write_small_checkpoint


def files(root: Path, *names: str, data: bytes = b"{}") -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def lora(root: Path, *names: str) -> Path:
    files(root, *names)
    (root / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "openbmb/MiniCPM4-8B"}')
    return root


def zipped(root: Path) -> Path:
    with zipfile.ZipFile(root / "model.zip", "w") as archive:
        archive.writestr("config.json", "{}")
    return root / "model.zip"


def tarred(root: Path) -> Path:
    with tarfile.open(root / "model.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("config.json"), io.BytesIO())
    return root / "model.tar"


def file(root: Path, name: str, data: bytes) -> Path:
    (root / name).write_bytes(data)
    return root / name


def inside(root: Path, name: str) -> Path:
    return write_small_checkpoint(root / "m") / name


def pipe(root: Path) -> Path:
    os.mkfifo(root / "pipe")
    return root / "pipe"


def weights_alone(root: Path) -> Path:
    save_file({"a": np.zeros(3, np.float32)}, root / "model.safetensors")
    return root / "model.safetensors"


def part_of_a_pipeline(root: Path) -> Path:
    folder = write_small_checkpoint(root / "transformer")
    (folder / "config.json").write_text('{"_class_name": "FluxTransformer2DModel", "_diffusers_version": "0.30.0"}')
    return folder


CASES: dict[str, tuple[Callable[[Path], Path], type[QuantkitError], str, str]] = {
    "nothing": (lambda p: p / "none", BadOption, "none does not exist", ""),
    "a name of the Hub": (lambda p: Path("openbmb/MiniCPM4-0.5B"), BadOption, "does not exist", "hf download"),
    "an empty folder": (files, IncompleteCheckpoint, "is empty", "download the whole model"),
    "a tokenizer alone": (
        lambda p: files(p, "config.json", "tokenizer.json"),
        IncompleteCheckpoint,
        "holds no weights",
        "whole model",
    ),
    "a begun download": (
        lambda p: files(p, "config.json", "model.safetensors.part"),
        IncompleteCheckpoint,
        "'model.safetensors.part' is an unfinished",
        "whole model",
    ),
    "an adapter without a config": (
        lambda p: lora(p, "adapter_model.safetensors"),
        UnsupportedModel,
        "adapter .* of 'openbmb/MiniCPM4-8B'",
        "merge",
    ),
    "an adapter as a pickle": (
        lambda p: lora(p, "adapter_model.bin"),
        UnsupportedModel,
        "adapter .* of 'openbmb/MiniCPM4-8B'",
        "merge",
    ),
    "an adapter with a config": (
        lambda p: lora(p, "config.json", "adapter_model.safetensors"),
        UnsupportedModel,
        "adapter .* of",
        "merge",
    ),
    "an adapter and its tokenizer": (
        lambda p: lora(p, "tokenizer.json", "adapter_model.bin"),
        UnsupportedModel,
        "holds an adapter",
        "merge",
    ),
    "the config of an adapter": (lora, UnsupportedModel, "holds an adapter", "merge"),
    "other pickles": (
        lambda p: files(p, "config.json", "model.pt"),
        IncompleteCheckpoint,
        "pickles .'model.pt'.",
        "save_pretrained",
    ),
    "ONNX": (
        lambda p: files(p, "config.json", "decoder_model.onnx"),
        UnsupportedModel,
        "an ONNX model",
        "transformers",
    ),
    "TensorFlow": (lambda p: files(p, "config.json", "tf_model.h5"), UnsupportedModel, "TensorFlow", "transformers"),
    "a saved model": (lambda p: files(p, "saved_model.pb"), UnsupportedModel, "TensorFlow", "transformers"),
    "Flax": (lambda p: files(p, "config.json", "flax_model.msgpack"), UnsupportedModel, "Flax", "transformers"),
    "OpenVINO": (lambda p: files(p, "config.json", "openvino_model.bin"), UnsupportedModel, "OpenVINO", "transformers"),
    "TensorRT": (lambda p: files(p, "config.json", "rank0.engine"), UnsupportedModel, "TensorRT", "transformers"),
    "MLC": (lambda p: files(p, "mlc-chat-config.json", "params_shard_0.bin"), UnsupportedModel, "MLC", "transformers"),
    "diffusers": (
        lambda p: files(p, "model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"),
        UnsupportedModel,
        "diffusers",
        "transformers",
    ),
    "a part of a pipeline": (
        part_of_a_pipeline,
        UnsupportedModel,
        "part of a pipeline of diffusers",
        "language models",
    ),
    "Meta's layout": (
        lambda p: files(p, "params.json", "consolidated.00.pth"),
        UnsupportedModel,
        "layout of Meta",
        "transformers",
    ),
    "a cached model": (
        lambda p: files(p, "blobs/x", "refs/main", "snapshots/abc/config.json"),
        BadOption,
        "in the Hub's cache",
        "snapshots/abc",
    ),
    "a folder of folders": (lambda p: files(p, "README.md", "int4/config.json"), BadOption, "'int4'", "int4"),
    "a folder of GGUF": (
        lambda p: files(p, "a.gguf", "b.gguf"),
        BadOption,
        "a GGUF file, 'a.gguf' and 1 more",
        "a.gguf",
    ),
    "GGUF beside a config": (
        lambda p: files(p, "config.json", "a.gguf"),
        BadOption,
        "a GGUF file, 'a.gguf'",
        "a.gguf",
    ),
    "a folder of GGUF with a projector": (
        lambda p: files(p, "mmproj-a.gguf", "z.gguf"),
        BadOption,
        "a GGUF file, 'z.gguf'",
        "z.gguf",
    ),
    "a config of a folder": (lambda p: inside(p, "config.json"), BadOption, "one file of a model's folder", "/m$"),
    "an index of a folder": (
        lambda p: inside(p, "model.safetensors.index.json"),
        BadOption,
        "one file of a model's folder",
        "/m$",
    ),
    "a shard of a folder": (
        lambda p: inside(p, "model-00001-of-00002.safetensors"),
        BadOption,
        "one file of a model's folder",
        "/m$",
    ),
    "weights without a config": (weights_alone, IncompleteCheckpoint, "no config.json beside it", "give the folder"),
    "a zip archive": (zipped, MalformedFile, "a zip archive", ""),
    "a tar archive": (tarred, MalformedFile, "a tar archive", "unpack it"),
    "ggjt": (lambda p: file(p, "ggml-model-q4_0.bin", b"tjgg\1\0\0\0"), MalformedFile, "before GGUF", "convert"),
    "ggml": (lambda p: file(p, "ggml-model.bin", b"lmgg\1\0\0\0"), MalformedFile, "before GGUF", "convert"),
    "ggjt called GGUF": (lambda p: file(p, "m.gguf", b"tjgg\3" + bytes(99)), MalformedFile, "before GGUF", "convert"),
    "a pickle": (lambda p: file(p, "model.pth", b"PK\3\4"), MalformedFile, "a zip archive, or a PyTorch", "trust"),
    "an ONNX file": (lambda p: file(p, "model.onnx", b"\x08\x07\x12\x07pytorch"), UnsupportedModel, "ONNX", ""),
    "a pointer to a GGUF": (lambda p: file(p, "m.gguf", POINTER), IncompleteFile, "Git LFS pointer", "git lfs pull"),
    "a pointer to a bin": (lambda p: file(p, "m.bin", POINTER), IncompleteFile, "Git LFS pointer", "git lfs pull"),
    "a page called GGUF": (lambda p: file(p, "m.gguf", b"<!DOCTYPE html>"), IncompleteFile, "an HTML page", "repeat"),
    "an error called GGUF": (
        lambda p: file(p, "m.gguf", b'{"error":"Repository not found"}'),
        IncompleteFile,
        "an error message",
        "repeat",
    ),
    "words called GGUF": (
        lambda p: file(p, "m.gguf", b"Entry not found"),
        IncompleteFile,
        "an error message",
        "repeat",
    ),
    "an empty GGUF": (lambda p: file(p, "m.gguf", b""), IncompleteFile, "is empty", "repeat"),
    "zeros called GGUF": (lambda p: file(p, "m.gguf", bytes(9999)), IncompleteFile, "zeros .*9,999 bytes", "repeat"),
    "a begun GGUF": (
        lambda p: file(p, "m.gguf.incomplete", b"GGUF"),
        QuantkitError,
        "m.gguf.incomplete has 4 bytes",
        "",
    ),
    "a begun file": (
        lambda p: file(p, "m.safetensors.crdownload", b"12"),
        MalformedFile,
        "unfinished download",
        "finish",
    ),
    "a text": (
        lambda p: file(p, "notes", b"a text"),
        MalformedFile,
        "not a model that quantkit reads",
        "readable: awq",
    ),
    "a pipe": (pipe, MalformedFile, "not a regular file", ""),
}


@pytest.mark.parametrize("case", CASES)
def test_a_path_is_told_for_what_it_is(case: str, tmp_path: Path) -> None:
    make, error, message, hint = CASES[case]
    root = tmp_path / "root"
    root.mkdir()
    path = make(root)
    with pytest.raises(error, match=message) as refusal:
        registry.open_checkpoint(path)
    assert str(path) in str(refusal.value)
    assert re.search(hint, str(refusal.value.hint))
    assert str(refusal.value).isprintable()


SMALL_FILES = [
    "config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
    "model-00002-of-00002.safetensors",
]
STANDING_IN = {
    "a pointer": (POINTER, "a Git LFS pointer to 4,021,384 bytes", "git lfs pull"),
    "a page": (b"<!doctype html><title>Sign in</title>", "an HTML page", "repeat"),
    "an error": (b'{"error": "Access to model is restricted"}', "an error message of a server", "repeat"),
    "zeros": (bytes(300), "filled with zeros", "repeat"),
    "nothing": (b"", "empty", "repeat"),
}


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json"])
def test_a_json_file_that_was_cut_is_named_with_its_size(name: str, share: float, tmp_path: Path) -> None:
    folder = write_small_checkpoint(tmp_path / "model")
    data = (json.dumps({"a": {"b": list(range(999))}, "c": "d" * 99}) + "\n").encode()
    size = int(len(data) * share)
    (folder / name).write_bytes(data[:size])
    with pytest.raises(IncompleteFile, match=f"{name} ends in the middle, after {size:,} bytes"):
        registry.open_checkpoint(folder)


@pytest.mark.parametrize("case", STANDING_IN)
@pytest.mark.parametrize("name", SMALL_FILES)
def test_what_stands_in_for_any_file_of_a_folder_is_named(name: str, case: str, tmp_path: Path) -> None:
    data, message, hint = STANDING_IN[case]
    folder = write_small_checkpoint(tmp_path / "model")
    (folder / name).write_bytes(data)
    if name.endswith(".jinja") and not data:  # a template may be empty
        assert registry.open_checkpoint(folder).weights
        return
    with pytest.raises(IncompleteFile, match=message) as refusal:
        registry.open_checkpoint(folder)
    assert name in str(refusal.value)
    assert f"({len(data):,} bytes)" in str(refusal.value)
    assert re.search(hint, str(refusal.value.hint))
