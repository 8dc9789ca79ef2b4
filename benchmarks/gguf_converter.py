"""Do a GGUF file of ours and one of llama.cpp's converter have the same keys and the same tensors?

    python -m benchmarks.gguf_converter --llama-cpp PATH [--model golden/model golden/untuned]

PATH is a source tree of llama.cpp, such as `vendor/llama.cpp` in the source package of llama-cpp-python; its
`convert_hf_to_gguf.py` runs with this interpreter. Both make an f32 file of each model. Printed are keys that we lack,
keys of other values, keys that only we write, tensors that one lacks and tensors of other types, shapes or bytes.

Exits with 1 where a key of theirs is missing, a key of ours is not among `OURS`, a value is not among `OTHERS`, or a
tensor differs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import quantkit
from quantkit.exporters.gguf.container.file import GGUFFile, read_gguf

OURS = (
    *("rope.dimension_count", "rope.freq_base", "rope.scaling.attn_factor", "rope.scaling.original_context_length"),
    *("vocab_size", "attention.key_length", "attention.value_length"),
    *("quantkit.config", "quantkit.generation_config"),
    *("tokenizer.ggml.add_space_prefix", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.padding_token_id"),
    *("tokenizer.ggml.unknown_token_id", "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token"),
    *("tokenizer.ggml.add_sep_token", "general.sampling.temp"),
)
"""Keys that only we write, where the converter leaves them to llama.cpp's defaults; of the model's without its name."""
OTHERS = ("general.name", "tokenizer.ggml.token_type", "tokenizer.ggml.eos_token_id", "general.size_label")
"""Keys of other values: the converter names a model after its folder, and calls the unknown token a control token."""


def written(model: Path, tree: Path, folder: Path) -> tuple[GGUFFile, GGUFFile] | None:
    """The converter's file of `model`, and ours; None where the converter fails."""
    theirs, ours = folder / "theirs.gguf", folder / "ours.gguf"
    command = [sys.executable, str(tree / "convert_hf_to_gguf.py"), str(model), "--outtype", "f32", "--outfile"]
    made = subprocess.run([*command, str(theirs)], check=False, capture_output=True, text=True)
    if made.returncode:
        return None
    quantkit.export("gguf", model, ours, quantkit.ExportOptions(type="f32"))
    return read_gguf(theirs), read_gguf(ours)


def same(one: Any, other: Any) -> bool:
    """Whether two values of keys are."""
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return type(one) is type(other) and np.array_equal(one, other)
    return bool(one == other)


def differing(theirs: GGUFFile, ours: GGUFFile) -> Iterator[tuple[str, bool]]:
    """A line for each difference, and whether it is one that is known."""
    prefix = f"{theirs.metadata['general.architecture']}."
    for key in sorted({*theirs.metadata, *ours.metadata}):
        if key not in ours.metadata:
            yield f"key {key} is missing", False
        elif key not in theirs.metadata:
            yield f"key {key} is ours alone", key.removeprefix(prefix) in OURS
        elif not same(theirs.metadata[key], ours.metadata[key]) or theirs.kinds[key] != ours.kinds[key]:
            yield f"key {key} is {ours.metadata[key]!s:.60}, theirs {theirs.metadata[key]!s:.60}", key in OTHERS
    for name in sorted({*theirs.tensors, *ours.tensors}):
        one, other = theirs.tensors.get(name), ours.tensors.get(name)
        if one is None or other is None:
            yield f"tensor {name} is {'ours' if one is None else 'theirs'} alone", False
        elif (one.type, one.shape) != (other.type, other.shape):
            yield f"tensor {name} is {other.type.name} {other.shape}, theirs {one.type.name} {one.shape}", False
        elif not np.array_equal(*(file.rows(name, 0, one.shape[0]) for file in (theirs, ours))):
            yield f"tensor {name} has other bytes", False


def main() -> int:
    """Compare all; 1 where something differs that should not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--llama-cpp", required=True, type=Path, metavar="PATH")
    parser.add_argument("--model", type=Path, nargs="+", default=[Path("golden/model"), Path("golden/untuned")])
    arguments = parser.parse_args()
    bad = 0
    for model in arguments.model:
        with tempfile.TemporaryDirectory(prefix="quantkit-converter-") as name:
            files = written(model, arguments.llama_cpp, Path(name))
            if files is None:
                print(f"{model}: the converter does not take it")
                continue
            theirs, lines = files[0], list(differing(*files))
        bad += sum(not known for _, known in lines)
        tensors = sum(line.startswith("tensor") for line, _ in lines)
        print(f"{model}: {len(theirs.metadata)} keys, {len(theirs.tensors)} tensors, of which {tensors} differ")
        for line, known in lines:
            print(f"    {line}{'' if known else '   <-- NOT EXPECTED'}")
    print("same keys, extra ones aside, and the same tensors" if not bad else f"{bad} DIFFERENCES")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
