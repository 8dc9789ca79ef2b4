"""Speed of MLX, ONNX and OpenVINO exports at the true MiniCPM4-0.5B shape, beside the engines' own tools.

    python -m benchmarks.format_speed [--model DIR] [--rounds 3] [--nncf PYTHON] [--only export convert decode]

export      processor time of `quantkit export` of a 4-bit folder (symmetric, groups of 128), start-up, re-reading and
            hashing included, over that of SHA-256 of the bytes read plus written; peak of resident memory
convert     `mlx_lm.convert -q` of the folded model (groups of 64) over `quantkit quantize --method rtn` and `quantkit
            export mlx` from the same dense source: wall and processor time
decode      processor time of a token in ONNX Runtime and OpenVINO at their defaults, one thread: ours over the engine's
            own tool (MatMulNBitsQuantizer and nncf), embedding and head alike

nncf runs in an environment of its own, whose interpreter --nncf names. Exits with 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.child import Cost, measured
from benchmarks.export_speed import MIB, middle, sha256_seconds
from benchmarks.make_checkpoint import make_checkpoint

EXPORTS = {
    "mlx": ("mlx",),
    "onnx": ("onnx",),
    "onnx, standard operators": ("onnx", "--ops", "standard"),
    "openvino": ("openvino",),
}
MAX_SHA256_RATIO, MAX_PEAK_MIB, MIN_CONVERT_RATIO, MAX_DECODE_RATIO = 8.0, 600, 1.6, 1.1
PARTS = ("export", "convert", "decode")
Line = tuple[bool, str]


def quantkit(*arguments: str | Path) -> Cost:
    """One command as a user gives it."""
    return measured([sys.executable, "-m", "quantkit", *arguments, "--overwrite"])[0]


def exports(model: Path, folder: Path, rounds: int) -> Iterator[Line]:
    """Every container beside SHA-256."""
    source = folder / "int4"
    quantkit("quantize", model, "--method", "rtn", "--out", source)
    for name, words in EXPORTS.items():
        out = folder / "exported"
        cost = middle([quantkit("export", words[0], source, *words[1:], "--out", out) for _ in range(rounds)])
        files = [file for place in (source, out) for file in place.iterdir() if file.is_file()]
        hashing = middle_of([sum(map(sha256_seconds, files)) for _ in range(rounds)])
        ratio, peak = cost.cpu / hashing, cost.peak_rss / MIB
        met = ratio <= MAX_SHA256_RATIO and peak <= MAX_PEAK_MIB
        yield met, f"export {name}: {cost.cpu:.2f} s of processor, {ratio:.1f} x SHA-256, {peak:.0f} MiB"


def converts(model: Path, folder: Path, rounds: int) -> Iterator[Line]:
    """From a dense source to MLX."""
    folded = folder / "folded"
    quantkit("export", "hf", model, "--arch", "llama", "--out", folded)
    program = "import sys, mlx_lm; mlx_lm.convert(sys.argv[1], sys.argv[2], quantize=True)"
    theirs, ours = [], []
    for number in range(rounds):
        theirs.append(measured([sys.executable, "-c", program, folded, folder / f"theirs-{number}"])[0])
        run = quantkit("quantize", model, "--method", "rtn", "--group-size", "64", "--out", folder / "run")
        last = quantkit("export", "mlx", folder / "run", "--out", folder / "ours")
        ours.append(Cost(run.wall + last.wall, run.cpu + last.cpu, max(run.peak_rss, last.peak_rss)))
    their, our = middle(theirs), middle(ours)
    wall, cpu = their.wall / our.wall, their.cpu / our.cpu
    yield (
        wall >= MIN_CONVERT_RATIO,
        f"convert: mlx_lm.convert {their.wall:.1f} s and {their.peak_rss / MIB:.0f} MiB, ours {our.wall:.1f} s and "
        f"{our.peak_rss / MIB:.0f} MiB: {wall:.2f} x in wall time, {cpu:.2f} x in processor time",
    )


def decodes(model: Path, folder: Path, nncf: Path | None) -> Iterator[Line]:
    """A token in the engine: our export, and the tool's of our dense one."""
    from benchmarks.format_quality import NNCF, Setting, nncf_compress, ort_quantize  # noqa: PLC0415 - imports torch

    asymmetric = folder / "asymmetric"
    quantkit("quantize", model, "--method", "rtn", "--asym", "--out", asymmetric)
    quantkit("export", "onnx", asymmetric, "--out", folder / "onnx-ours")
    quantkit("export", "onnx", model, "--type", "f32", "--out", folder / "onnx-dense")
    ort_quantize(folder / "onnx-dense" / "model.onnx", folder / "onnx-theirs")
    yield decoded("onnxruntime", *(folder / name / "model.onnx" for name in ("onnx-ours", "onnx-theirs")))
    if nncf is None:
        return
    recipe = folder / "recipe.toml"
    recipe.write_text('[[rule]]\nrole = ["embed", "lm_head"]\nbits = 8\ngroup_size = -1\nsymmetric = false\n')
    quantkit("quantize", model, "--method", "rtn", "--recipe", recipe, "--out", folder / "outer")
    quantkit("export", "openvino", folder / "outer", "--out", folder / "openvino-ours")
    quantkit("export", "openvino", model, "--type", "f16", "--out", folder / "openvino-dense")
    setting = Setting(model, folder, 1, 0, nncf)
    nncf_compress(setting, folder / "openvino-dense", folder / "openvino-theirs", NNCF["nncf, symmetric"])
    files = (folder / name / "openvino_model.xml" for name in ("openvino-ours", "openvino-theirs"))
    yield decoded("openvino", *files)


def decoded(engine: str, ours: Path, theirs: Path) -> Line:
    """Both in turns, the smaller of two runs each."""
    found: dict[Path, list[float]] = {ours: [], theirs: []}
    for _ in range(2):
        for file, seconds in found.items():
            program = [sys.executable, "-m", "benchmarks.formats.decode", engine, file]
            seconds.append(float(measured(program)[1]))
    mine, other = min(found[ours]), min(found[theirs])
    text = f"decode in {engine}: {1e3 * mine:.1f} ms of processor a token, its own tool's {1e3 * other:.1f} ms"
    return mine <= MAX_DECODE_RATIO * other, f"{text}: {mine / other:.2f} x"


def middle_of(values: Sequence[float]) -> float:
    """The median."""
    return sorted(values)[len(values) // 2]


def main() -> int:
    """Make the model when none is given, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="folder with one model.safetensors (default: made for this run)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nncf", type=Path, help="interpreter of an environment that has nncf")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    missed = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = options.model or folder / "minicpm4-0.5b"
        if options.model is None:
            make_checkpoint(model, "minicpm4-0.5b")
        parts = {
            "export": lambda: exports(model, folder, options.rounds),
            "convert": lambda: converts(model, folder, options.rounds),
            "decode": lambda: decodes(model, folder, options.nncf),
        }
        for part in options.only:
            for met, text in parts[part]():
                missed |= not met
                print(f"{'pass' if met else 'FAIL'}  {text}", flush=True)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
