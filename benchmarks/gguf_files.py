"""Are the tensors of `export gguf --algorithm reference` those of llama-quantize, type for type, byte for byte?

    python -m benchmarks.gguf_files --llama-quantize PATH [--model golden/model golden/untuned] [--only q4_k_m,q6_k]

For every file type, and for options that choose types of single tensors, both make a file of the same model: ours in
one step from the checkpoint, llama-quantize from the f32 GGUF of it. Printed are the tensors, those of another type,
and those of other bytes. llama-quantize is built by the source package of llama-cpp-python (`vendor/llama.cpp`, target
`llama-quantize`), for plain x86-64: newer instructions would fuse products and sums. It refuses q2_k_s without
importance weights.

Exits with 1 when a tensor differs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import quantkit
from quantkit.exporters.gguf.container.file import GGUFFile, read_gguf
from quantkit.exporters.gguf.mixture.file_types import FILE_TYPES

WEIGHTED_ONLY = "q2_k_s"
CHOICES: Sequence[tuple[str, quantkit.BlockOptions, tuple[str, ...]]] = (
    ("q4_k_m", quantkit.BlockOptions(algorithm="reference", pure=True), ("--pure",)),
    ("mxfp4_moe", quantkit.BlockOptions(algorithm="reference", pure=True), ("--pure",)),
    (
        "q4_k_s",
        quantkit.BlockOptions(algorithm="reference", tensor_types=("blk.0.attn_(v|kv_b)=q8_0", "ffn_down=q3_k")),
        ("--tensor-type", "blk.0.attn_(v|kv_b)=q8_0", "--tensor-type", "ffn_down=q3_k"),
    ),
    (
        "q3_k_m",
        quantkit.BlockOptions(algorithm="reference", output_type="q5_k"),
        ("--output-tensor-type", "q5_k"),
    ),
    (
        "q3_k_m",
        quantkit.BlockOptions(algorithm="reference", embedding_type="q8_0"),
        ("--token-embedding-type", "q8_0"),
    ),
)
"""File type, our options, and llama-quantize's."""


def differing(ours: GGUFFile, theirs: GGUFFile) -> tuple[list[str], list[str]]:
    """Names of tensors of another type, or that only one has, and of those of other bytes."""
    types, contents = [], []
    for name in sorted({*ours.tensors, *theirs.tensors}):
        one, other = ours.tensors.get(name), theirs.tensors.get(name)
        if one is None or other is None or (one.type, one.shape) != (other.type, other.shape):
            types.append(name)
        elif not np.array_equal(*(file.rows(name, 0, one.shape[0]) for file in (ours, theirs))):
            contents.append(name)
    return types, contents


def compared(
    model: Path, plain: Path, tool: str, kind: str, blocks: quantkit.BlockOptions, words: tuple[str, ...]
) -> bool:
    """Write both files, and print a line; whether all tensors are the same."""
    with tempfile.TemporaryDirectory(prefix="quantkit-files-") as name:
        ours, theirs = Path(name) / "ours.gguf", Path(name) / "theirs.gguf"
        quantkit.export("gguf", model, ours, quantkit.ExportOptions(type=kind, blocks=blocks))
        subprocess.run([tool, *words, plain, theirs, kind.upper(), "1"], check=True, capture_output=True)
        one, other = read_gguf(ours), read_gguf(theirs)
        types, contents = differing(one, other)
        same = one.metadata["general.file_type"] == other.metadata["general.file_type"]
    said = f"{len(one.tensors)} tensors, {len(types)} of another type, {len(contents)} of other bytes"
    print(f"{model.name:10}{kind:10} {' '.join(words):60} {said}{'' if same else ', another file type'}", flush=True)
    for name in [*types, *contents][:4]:
        print(f"    {name}: {one.tensors[name].type.name}, theirs {other.tensors[name].type.name}")
    return same and not types and not contents


def main() -> int:
    """Compare all; 1 where a tensor differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--llama-quantize", required=True, metavar="PATH")
    parser.add_argument("--model", type=Path, nargs="+", default=[Path("golden/model"), Path("golden/untuned")])
    parser.add_argument("--only", default=",".join(FILE_TYPES), help="file types, with commas")
    arguments = parser.parse_args()
    alike = True
    for model in arguments.model:
        with tempfile.TemporaryDirectory(prefix="quantkit-plain-") as name:
            plain = Path(name) / "plain.gguf"
            quantkit.export("gguf", model, plain, quantkit.ExportOptions(type="f32"))
            reference = quantkit.BlockOptions(algorithm="reference")
            for kind in arguments.only.split(","):
                if kind != WEIGHTED_ONLY:
                    alike &= compared(model, plain, arguments.llama_quantize, kind, reference, ())
            for kind, blocks, words in CHOICES:
                alike &= compared(model, plain, arguments.llama_quantize, kind, blocks, words)
    print("all tensors are the same" if alike else "TENSORS DIFFER")
    return 0 if alike else 1


if __name__ == "__main__":
    sys.exit(main())
