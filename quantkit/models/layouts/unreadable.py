"""What lies at a path that no reader takes for a model, told so that its owner knows what to do."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from quantkit.errors import (
    BadOption,
    IncompleteCheckpoint,
    MalformedFile,
    QuantkitError,
    UnsupportedModel,
    and_more,
    nearest,
)
from quantkit.files.foreign_file import read_head, refuse_foreign
from quantkit.files.member import BLOBS, SNAPSHOTS, UNFINISHED, read_member_json
from quantkit.files.source_file import SourceFile
from quantkit.models.layouts.quantizers import refuse_quantized
from quantkit.models.layouts.shards import CONVERT_PICKLES, unfinished
from quantkit.models.layouts.small_files import CONFIG_NAME, MAX_CONFIG_BYTES, file_names, pickles

ADAPTER_CONFIG = "adapter_config.json"

_SAFETENSORS = "take the version of the model for transformers: config.json and *.safetensors"
_OTHERS: tuple[tuple[str, str], ...] = (
    (r"model_index\.json", "a pipeline of diffusers, which makes images"),
    (r".*\.onnx", "an ONNX model"),
    (r"tf_model\.h5|saved_model\.pb|.*\.keras", "a TensorFlow model"),
    (r"flax_model.*\.msgpack", "a Flax model"),
    (r"openvino_model\.(xml|bin)", "an OpenVINO model"),
    (r".*\.tflite", "a TensorFlow Lite model"),
    (r".*\.(mlpackage|mlmodel|mlmodelc)", "a Core ML model"),
    (r".*\.engine|.*\.plan", "an engine of TensorRT"),
    (r"rust_model\.ot", "a model of rust-bert"),
    (r"mlc-chat-config\.json", "a model of MLC"),
    (r"consolidated.*|params\.json", "a model in the layout of Meta or Mistral"),
)
"""Names of files, as expressions, and what a folder is that holds one and no weights that are read."""
_MERGE = "merge it into the base model first (peft: merge_and_unload)"
_ADAPTER_TENSOR = re.compile(r"\.(lora_[A-Za-z_]+|hada_w\d_[ab]|base_layer|modules_to_save)\.")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_GGUF = re.compile(r"(?!mmproj).*\.gguf", re.IGNORECASE)


def unreadable(path: Path, formats: Sequence[str]) -> QuantkitError:
    """The error for a `path` that none of the readers of `formats` takes.

    BadOption: another path is meant. MalformedFile, IncompleteFile: no model, or a failed download.
    UnsupportedModel: a model in a form that is not read. IncompleteCheckpoint: a folder without weights.
    """
    try:
        state = path.stat()
    except OSError:
        return BadOption(f"{path} does not exist", hint=_meant(path))
    try:
        if stat.S_ISDIR(state.st_mode):
            _refuse_folder(path, formats)
        _refuse_file(path)
    except QuantkitError as error:
        return error
    return MalformedFile(f"{path} is not a model that quantkit reads", hint=f"readable: {', '.join(formats)}")


def _meant(path: Path) -> str | None:
    """What the user may have meant by a path that leads nowhere."""
    above = path
    while not above.is_dir() and above != above.parent:
        above = above.parent
    names = file_names(above) if above.is_dir() else []
    missing = path.relative_to(above).parts if above != path else ()
    near = nearest(missing[0], names) if missing else None
    if near is not None:
        return f"did you mean {above.joinpath(near, *missing[1:])}?"
    if _HUB_NAME.fullmatch(str(path)):
        return f"models are read from this machine: hf download {path} --local-dir {path.name}"
    return f"{above} has no {missing[0][:80]!r}" if len(missing) > 1 else None


def refuse_adapter(path: Path, names: Sequence[str]) -> None:
    """Raise `UnsupportedModel` where the files `names` of a folder hold an adapter.

    transformers applies an adapter that lies beside the weights, so the weights alone are another model.
    """
    found = [name for name in names if name == ADAPTER_CONFIG or name.startswith("adapter_model.")]
    if not found:
        return
    base = None
    if ADAPTER_CONFIG in names:
        try:
            base = read_member_json(path, ADAPTER_CONFIG, limit=MAX_CONFIG_BYTES).get("base_model_name_or_path")
        except QuantkitError:  # what counts is that it is there
            base = None
    of = f" of {base[:80]!r}" if isinstance(base, str) and base else ""
    raise UnsupportedModel(
        f"{path} holds an adapter (LoRA or alike){of}: {', '.join(found)[:120]}; it changes the weights it belongs to",
        hint=f"{_MERGE}, or take its files out of the folder",
    )


def refuse_adapter_tensors(path: Path, tensors: Iterable[str]) -> None:
    """Raise `UnsupportedModel` where `tensors`, names of the weights of a folder, are an adapter's."""
    found = next((name for name in tensors if _ADAPTER_TENSOR.search(name)), None)
    if found is not None:
        raise UnsupportedModel(
            f"{path} holds an adapter (LoRA or alike) among its weights: tensor {found[:120]!r}", hint=_MERGE
        )


def _refuse_folder(path: Path, formats: Sequence[str]) -> None:
    names = file_names(path)
    refuse_adapter(path, names)
    if CONFIG_NAME in names:
        config = read_member_json(path, CONFIG_NAME, limit=MAX_CONFIG_BYTES)
        refuse_quantized(config, (), str(path))
    for expression, what in _OTHERS:
        found = next((name for name in names if re.fullmatch(expression, name)), None)
        if found is not None:
            raise UnsupportedModel(f"{path} holds {what} ({found[:80]!r}), which is not read", hint=_SAFETENSORS)
    _refuse_outer_folder(path, names)
    unread = pickles(names)
    if unread:
        raise IncompleteCheckpoint(
            f"{path} holds no weights but pickles ({unread[0][:80]!r}), which are never opened",
            hint=f"{_SAFETENSORS}; or {CONVERT_PICKLES}",
        )
    what = f"holds no weights{unfinished(path, names)}" if names else "is empty"
    raise IncompleteCheckpoint(f"{path} {what}", hint=f"download the whole model; readable: {', '.join(formats)}")


def _refuse_outer_folder(path: Path, names: Sequence[str]) -> None:
    """The model lies in a file or a folder of this one."""
    if {BLOBS, SNAPSHOTS} <= set(names):
        inner = [f"{SNAPSHOTS}/{name}" for name in file_names(path / SNAPSHOTS)]
        raise BadOption(
            f"{path} is a model's folder in the Hub's cache, not the model itself",
            hint=f"give its snapshot: {path / inner[0]}" if inner else "it has no snapshot; repeat the download",
        )
    files = [name for name in names if _GGUF.fullmatch(name)]
    folders = [name for name in names if (path / name / CONFIG_NAME).is_file()]
    inner = files or folders
    if inner:
        what = "GGUF file" if files else "folder with a config.json"
        raise BadOption(
            f"{path} holds no model itself, but a {what}, {inner[0][:80]!r}{and_more(inner)}",
            hint=f"give it: {path / inner[0]}",
        )


def _refuse_file(path: Path) -> None:
    parent = path.parent
    if (parent / CONFIG_NAME).is_file():
        raise BadOption(f"{path} is one file of a model's folder", hint=f"give the folder: {parent}")
    file = SourceFile.open(path)
    if path.name.endswith(UNFINISHED):
        raise MalformedFile(f"{path} is an unfinished download ({file.size:,} bytes)", hint="finish the download")
    refuse_foreign(file, read_head(file))
    if path.suffix == ".safetensors":
        raise IncompleteCheckpoint(
            f"{path} has no {CONFIG_NAME} beside it", hint=f"put the model's {CONFIG_NAME} there and give the folder"
        )
    for expression, what in _OTHERS:
        if re.fullmatch(expression, path.name):
            raise UnsupportedModel(f"{path} is {what}, which is not read", hint=_SAFETENSORS)
