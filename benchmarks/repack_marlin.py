"""Does `quantkit export marlin` repack an official GPTQ checkpoint for CPM.cu on a CPU, one block in memory at a time?

    python -m benchmarks.repack_marlin [--layers 1 4] [--folder DIR]

The source has the layout of MiniCPM4.1-8B-GPTQ (v1 zeros, groups of 128, no act-order) and its true shapes, with random
codes and fewer layers. For each number of layers: wall and processor time and peak memory of the command, in a process
of its own, fsync, re-reading and hashing included, beside SHA-256 of the input in the same run.

Every matrix of the output is then compared with what CPM.cu's own converter computes: unpack, join, permute tiles by
its table of 1024 places, pack. That script needs a GPU, one unsharded file and the whole model in memory twice; its
arithmetic is written anew here in numpy and timed on the same codes.

Exits with 1 when a matrix differs or a target is missed.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from benchmarks.child import Cost, measured
from benchmarks.export_speed import sha256_seconds
from benchmarks.make_checkpoint import config, write_json, write_tokenizer
from quantkit.models.recognition import parse_config
from quantkit.models.spec import LINEAR_ROLES, TensorSlot

GROUP, BITS_PER_WORD, CODES_PER_WORD = 128, 32, 8
MAX_PEAK_MIB = 450
MAX_PEAK_GROWTH = 1.05
MAX_SHA256_RATIO = 12.0
MIB = 1 << 20
FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj": ("self_attn.o_proj",),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}
SETTINGS = {
    "bits": 4,
    "checkpoint_format": "gptq",
    "desc_act": False,
    "group_size": GROUP,
    "lm_head": False,
    "quant_method": "gptq",
    "static_groups": True,
    "sym": True,
}


@dataclass(frozen=True, slots=True)
class Run:
    """One number of layers: source and output, their bytes, SHA-256 seconds of the input, cost of the command."""

    layers: int
    source: Path
    out: Path
    read: int
    written: int
    sha256: float
    cost: Cost


def tensors_of(slot: TensorSlot) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The tensors of `slot` in the source: dtype and shape by name."""
    if slot.role not in LINEAR_ROLES:
        return {slot.name: ("F16", slot.shape)}
    rows, cols = slot.shape
    module = slot.name.removesuffix(".weight")
    return {
        f"{module}.g_idx": ("I32", (cols,)),
        f"{module}.qweight": ("I32", (cols // CODES_PER_WORD, rows)),
        f"{module}.qzeros": ("I32", (cols // GROUP, rows // CODES_PER_WORD)),
        f"{module}.scales": ("F16", (cols // GROUP, rows)),
    }


def values(name: str, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """A tensor in parts of at most some rows; random, but depending on its name only."""
    random = np.random.default_rng([*name.encode()])
    if name.endswith(".g_idx"):
        yield (np.arange(shape[0]) // GROUP).astype("<i4")
    elif name.endswith(".qzeros"):
        yield np.full(shape, 0x77777777, "<i4")
    elif name.endswith(".qweight"):
        yield random.integers(0, 1 << BITS_PER_WORD, shape, dtype=np.uint32)
    else:
        for start in range(0, shape[0], 4096):
            part = random.standard_normal((min(4096, shape[0] - start), *shape[1:]), np.float32)
            yield (part * 0.01).astype("<f2")


def make_source(folder: Path, layers: int) -> int:
    """Write the checkpoint; returns the bytes of its one weight file."""
    folder.mkdir()
    settings: dict[str, Any] = {**config("minicpm4-8b"), "num_hidden_layers": layers, "torch_dtype": "float16"}
    write_json(folder / "config.json", {**settings, "quantization_config": SETTINGS})
    write_tokenizer(folder)
    tensors = {name: found for slot in parse_config(settings).slots() for name, found in tensors_of(slot).items()}
    header, position = {}, 0
    for name, (kind, shape) in tensors.items():
        end = position + int(np.prod(shape)) * (4 if kind == "I32" else 2)
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, (_, shape) in tensors.items():
            for part in values(name, shape):
                file.write(part.data)
    return 8 + len(text) + position


def table() -> np.ndarray:
    """The converter's table: where each of 1024 nibbles comes from in four 16 x 16 tiles side by side."""
    lanes = [
        [256 * tile + 16 * (2 * (lane % 4) + row) + lane // 4 + 8 * half for half in (0, 1) for row in (0, 1, 8, 9)]
        for lane in range(32)
        for tile in range(4)
    ]
    return np.array(lanes)[:, [0, 2, 4, 6, 1, 3, 5, 7]].ravel()


def by_table(words: np.ndarray) -> np.ndarray:
    """GPTQ words (k / 8, n) of whole tiles in Marlin's order, uint32 (k / 16, 2 n), as the converter does it."""
    k, n = words.shape[0] * CODES_PER_WORD, words.shape[1]
    codes = (words[np.arange(k) // CODES_PER_WORD] >> (np.arange(k, dtype=np.uint32) % 8 * 4)[:, None]) & 15
    tiles = codes.reshape(k // 16, 16, n // 16, 16).transpose(0, 2, 1, 3).reshape(-1, 1024)
    nibbles = tiles[:, table()].reshape(k // 16, 2 * n, CODES_PER_WORD)
    packed = np.zeros((k // 16, 2 * n), np.uint32)
    for i in range(CODES_PER_WORD):
        packed |= nibbles[..., i] << np.uint32(4 * i)
    return packed


def check(done: Run) -> tuple[float, int]:
    """Compare every matrix and every dense tensor; returns the seconds of the other way and the number of matrices.

    Raises:
        SystemExit: something differs.
    """
    seconds, count = 0.0, 0
    order = [i + 8 * j for i in range(8) for j in range(8)]
    with (
        safe_open(done.source / "model.safetensors", "np") as theirs,
        safe_open(done.out / "model_gptq.safetensors", "np") as ours,
    ):
        for layer in range(done.layers):
            for module, parts in FUSED.items():
                name = f"model.layers.{layer}.{module}"
                given = [f"model.layers.{layer}.{part}" for part in parts]
                words = np.concatenate([theirs.get_tensor(f"{part}.qweight") for part in given], axis=1)
                found = ours.get_tensor(f"{name}.qweight").view(np.uint32)
                for start in range(0, words.shape[0], 16):
                    begin = time.perf_counter()
                    expected = by_table(words[start : start + 16].view(np.uint32))
                    seconds += time.perf_counter() - begin
                    if not np.array_equal(found[start // 2 : start // 2 + 8], expected):
                        raise SystemExit(f"{name}.qweight differs")
                scales = np.concatenate([theirs.get_tensor(f"{part}.scales") for part in given], axis=1)
                permuted = scales.reshape(-1, 64)[:, order].reshape(scales.shape)
                if not np.array_equal(ours.get_tensor(f"{name}.scales"), permuted):
                    raise SystemExit(f"{name}.scales differs")
                count += 1
        dense = [name for name in theirs.keys() if name.endswith(".weight")]  # noqa: SIM118 - not a mapping
        for name in dense:
            if not np.array_equal(ours.get_tensor(name), theirs.get_tensor(name)):
                raise SystemExit(f"{name} differs")
        if len(ours.keys()) != 2 * count + len(dense):
            raise SystemExit(f"{len(ours.keys())} tensors, not {2 * count + len(dense)}")
    return seconds, count


def run(folder: Path, layers: int) -> Run:
    """Make a source and repack it. The comparison comes later: its memory would count as that of later children."""
    source, out = folder / f"source-{layers}", folder / f"model-{layers}-marlin"
    read = make_source(source, layers)
    digest = sha256_seconds(source / "model.safetensors")
    command: list[str | Path] = ["-m", "quantkit", "export", "marlin", source, "--target", "cpm.cu", "--out", out]
    cost, _ = measured([sys.executable, *command])
    return Run(layers, source, out, read, sum(path.stat().st_size for path in out.iterdir()), digest, cost)


def show(runs: Sequence[Run]) -> bool:
    """Compare, print the table and the targets; returns whether all are met."""
    print("layers    in MB   out MB   wall s    CPU s  peak MiB  CPU / SHA-256  matrices equal  by table, s")
    for done in runs:
        seconds, matrices = check(done)
        print(
            f"{done.layers:6}{done.read / 1e6:9.0f}{done.written / 1e6:9.0f}{done.cost.wall:9.2f}{done.cost.cpu:9.2f}"
            f"{done.cost.peak_rss / MIB:10.0f}{done.cost.cpu / done.sha256:15.2f}{matrices:16}{seconds:13.2f}"
        )
    first, last = runs[0], runs[-1]
    targets: Mapping[str, tuple[float, float]] = {
        "MiB of peak memory": (max(done.cost.peak_rss for done in runs) / MIB, MAX_PEAK_MIB),
        "processor time of SHA-256's": (last.cost.cpu / last.sha256, MAX_SHA256_RATIO),
        f"times the peak of {first.layers} layers, with {last.layers}": (
            last.cost.peak_rss / first.cost.peak_rss,
            MAX_PEAK_GROWTH,
        ),
    }
    for name, (found, most) in targets.items():
        print(f"  {'pass' if found <= most else 'FAIL'}  {found:.2f} {name}, at most {most:g}")
    return all(found <= most for found, most in targets.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, compare, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, nargs=2, default=(1, 4), metavar=("FEW", "MANY"))
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        return 0 if show([run(Path(name), layers) for layers in options.layers]) else 1


if __name__ == "__main__":
    sys.exit(main())
