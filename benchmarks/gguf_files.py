"""Are the tensors of `export gguf --algorithm reference` those of llama-quantize, type for type, byte for byte?

    python -m benchmarks.gguf_files --llama-quantize PATH [--model golden/model golden/untuned] [--only q4_k_m,q6_k]

For every file type, without and with an importance matrix in either format, and for options that choose types of single
tensors, both make a file of the same model: ours in one step from the checkpoint, llama-quantize from the f32 GGUF of
it. Besides the golden models there is a random one of eight layers, for rules that tell the first eighth from the
others. Printed are the tensors, those of another type, and those of other bytes.

llama-quantize is built by the source package of llama-cpp-python, for plain x86-64: newer instructions would fuse
products and sums. Without importance weights it refuses q2_k_s. Of file types none of whose tensors reads weights ours
refuses `--imatrix`; llama-quantize ignores it, and its file is compared with ours without.

    pip download --no-deps --no-binary :all: llama-cpp-python && tar xf llama_cpp_python-*.tar.gz
    cmake -B build -DGGML_NATIVE=OFF -DGGML_{SSE42,AVX,AVX2,FMA,F16C,BMI2}=OFF -DBUILD_SHARED_LIBS=OFF \\
        llama_cpp_python-*/vendor/llama.cpp && cmake --build build --target llama-quantize llama-imatrix

Exits with 1 when a tensor differs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

import quantkit
from quantkit.exporters.gguf.container.file import GGUFFile, read_gguf
from quantkit.exporters.gguf.mixture.file_types import FILE_TYPES
from tests.support.imatrix_files import gguf_matrix, legacy_matrix, random_sums
from tests.support.tiny import write_tiny_checkpoint

WEIGHTED_ONLY = "q2_k_s"
UNREAD = ("q8_0", "tq1_0", "tq2_0", "q2_0", "mxfp4_moe")
"""File types none of whose tensors, embedding and head aside, reads importance weights."""
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
ALL, BLOCKS = "all.gguf", "blocks.dat"
"""Importance matrices."""
Case = tuple[str, quantkit.BlockOptions, tuple[str, ...]]


def cases(kinds: Sequence[str], matrices: Sequence[Path]) -> Iterator[Case]:
    """Every file type, without and by every importance matrix that says something of it; and `CHOICES`."""
    plain = quantkit.BlockOptions(algorithm="reference")
    for kind in kinds:
        if kind != WEIGHTED_ONLY:
            yield kind, plain, ()
        for path in matrices:
            weighed = plain if kind in UNREAD else quantkit.BlockOptions(algorithm="reference", imatrix=path)
            if kind not in UNREAD or path.name == BLOCKS:
                yield kind, weighed, ("--imatrix", str(path))
    yield from CHOICES


def importance_matrices(plain: Path, folder: Path) -> list[Path]:
    """Skewed weights, a file in each format: GGUF for all matrices, .dat without embedding and head."""
    shapes = {name: info.shape for name, info in read_gguf(plain).tensors.items() if len(info.shape) > 1}
    sums = random_sums(shapes)
    blocks = {name: values for name, values in sums.items() if name.startswith("blk.")}
    (folder / ALL).write_bytes(gguf_matrix(sums, 4096))
    (folder / BLOCKS).write_bytes(legacy_matrix(blocks, calls=8))
    return [folder / ALL, folder / BLOCKS]


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


def compared(model: Path, plain: Path, tool: str, case: Case) -> bool:
    """Write both files, and print a line; whether all tensors are the same."""
    kind, blocks, words = case
    with tempfile.TemporaryDirectory(prefix="quantkit-files-") as name:
        ours, theirs = Path(name) / "ours.gguf", Path(name) / "theirs.gguf"
        quantkit.export("gguf", model, ours, quantkit.ExportOptions(type=kind, blocks=blocks))
        subprocess.run([tool, *words, plain, theirs, kind.upper(), "1"], check=True, capture_output=True)
        one, other = read_gguf(ours), read_gguf(theirs)
        types, contents = differing(one, other)
        same = one.metadata["general.file_type"] == other.metadata["general.file_type"]
    said = f"{len(one.tensors)} tensors, {len(types)} of another type, {len(contents)} of other bytes"
    options = " ".join(Path(word).name for word in words)
    print(f"{model.name:10}{kind:10} {options:60} {said}{'' if same else ', another file type'}", flush=True)
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
    alike, total = True, 0
    with tempfile.TemporaryDirectory(prefix="quantkit-plain-") as name:
        folder = Path(name)
        layers = write_tiny_checkpoint(folder / "8 layers", layers=8, tie=False, heads=4, kv_heads=1)
        for number, model in enumerate([*arguments.model, layers]):
            plain = folder / f"{number}.gguf"
            quantkit.export("gguf", model, plain, quantkit.ExportOptions(type="f32"))
            for case in cases(arguments.only.split(","), importance_matrices(plain, folder)):
                alike &= compared(model, plain, arguments.llama_quantize, case)
                total += 1
    print(f"all tensors of {total} files are the same" if alike else "TENSORS DIFFER")
    return 0 if alike else 1


if __name__ == "__main__":
    sys.exit(main())
