"""Quality per byte beside the engines' own tools: mlx_lm.convert, ONNX Runtime's quantizer, nncf.

    python -m benchmarks.format_quality [--model DIR] [--rows 8] [--nncf PYTHON] [--only NAME ...] [--json FILE]

Every row is a model of 4 bits, loaded in its real engine at exact settings and measured there: KL(original || row) per
token, in nats, on held-out text of three kinds (`benchmarks/text_kinds.py`), and the bytes of its weights. Ours are
`quantkit quantize --method gptq` on text that the model writes itself; nncf, where it calibrates, gets as many
sequences of the same text. Embedding and head are treated alike within a group of rows:

    mlx             dense embedding; groups of 64. `mlx_lm.convert -q` beside ours, symmetric
    mlx, all        the same with the embedding in 4 bits, as `mlx_lm.convert` has it
    onnx            dense embedding and head; blocks of 128. MatMulNBitsQuantizer, asymmetric, beside ours
    openvino        embedding and head in 8 bits, a scale per row, as nncf has them; groups of 128

nncf runs in an environment of its own, whose interpreter --nncf names; without it its rows are left out. The table can
be made in parts: --only runs the rows of those names, --json adds them to those that are in the file. Exits with 1 when
a target is missed.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.first_quality import GOLDEN, held_out_rows
from benchmarks.formats.engines import Logits, in_mlx, in_onnxruntime, in_openvino
from benchmarks.text_kinds import text_kinds
from golden.corpus import read_corpus
from quantkit import registry
from quantkit.calibration.compute import Compute
from quantkit.calibration.samples import CalibrationOptions
from quantkit.calibration.sources import calibration_samples
from quantkit.models.loading import load_model
from quantkit.models.spec import Role
from quantkit.pipeline.options import QuantizeOptions
from quantkit.pipeline.recipe import Recipe, Rule
from quantkit.pipeline.runs import export, quantize
from quantkit.protocols import ExportOptions
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.verification.metrics import kl_divergence

OUTER = (Role.EMBED, Role.LM_HEAD)
MOST = {
    "mlx_lm.convert": 0.25,
    "MatMulNBitsQuantizer": 0.4,
    "nncf, symmetric": 0.4,
    "nncf, asymmetric": 0.4,
}
"""Of a tool's KL by its defaults, on the first kind of text; of the best of nncf MOST_OF_BEST."""
MOST_OF_BEST = 0.75
SAME_BYTES = 1.01
"""Graphs and headers differ by this much."""
NNCF = {
    "nncf, symmetric": {"mode": "INT4_SYM"},
    "nncf, asymmetric": {"mode": "INT4_ASYM"},
    "nncf, AWQ and scale estimation": {"mode": "INT4_SYM", "calibrated": True, "awq": True, "scale_estimation": True},
    "nncf, GPTQ": {"mode": "INT4_SYM", "calibrated": True, "gptq": True},
}


@dataclass(eq=False)
class Setting:
    """What all rows share; quantized models and dense exports are made once, below `folder`."""

    model: Path
    folder: Path
    threads: int
    sequences: int
    nncf: Path | None
    made: dict[str, Path] = field(default_factory=dict)

    def once(self, name: str, make: Callable[[Path], object]) -> Path:
        """The folder `name`, made by the first who asks."""
        if name not in self.made:
            self.made[name] = self.folder / name
            make(self.made[name])
        return self.made[name]

    def run(self, group_size: int, *, symmetric: bool = True, outer: Mapping[str, Any] | None = None) -> Path:
        """`quantize --method gptq --bits 4`, embedding and head on a grid of `outer` settings."""
        name = f"run-{group_size}-{symmetric}-{len(outer or {})}-{(outer or {}).get('bits')}"
        rules = (Rule(roles=OUTER, settings=outer),) if outer else ()
        options = QuantizeOptions(
            method="gptq",
            scheme=AffineGroups(bits=4, group_size=group_size, symmetric=symmetric),
            recipe=Recipe(rules),
            calibration=CalibrationOptions(sequences=self.sequences),
        )
        compute = Compute(threads=self.threads)
        return self.once(name, lambda out: quantize(self.model, out, options, compute=compute))

    def exported(self, container: str, source: Path, **options: Any) -> Path:
        """A model in a container."""
        name = f"{container}-{source.name}-{'-'.join(map(str, options.values()))}"
        return self.once(name, lambda out: export(container, source, out, ExportOptions(**options)))


@dataclass(frozen=True, slots=True)
class Made:
    """A row's model in its engine, and the bytes of its weights."""

    logits: Logits
    size: int


def rows_of(setting: Setting) -> Iterator[tuple[str, Callable[[], Made]]]:
    """Every row by "group: name", in order."""
    llama = lambda: setting.exported("hf", setting.model, type="f32", arch="llama")  # noqa: E731

    def converted(*, everything: bool) -> Made:
        name = f"mlx-theirs-{everything}"
        made = setting.once(name, lambda out: mlx_convert(llama(), out, everything=everything))
        return Made(in_mlx(made), weights_size(made, "*.safetensors"))

    def ours_in_mlx(outer: Mapping[str, Any] | None) -> Made:
        made = setting.exported("mlx", setting.run(64, outer=outer))
        return Made(in_mlx(made), weights_size(made, "*.safetensors"))

    yield "mlx: mlx_lm.convert", lambda: converted(everything=False)
    yield "mlx: ours", lambda: ours_in_mlx(None)
    yield "mlx, all: mlx_lm.convert", lambda: converted(everything=True)
    yield "mlx, all: ours", lambda: ours_in_mlx({"bits": 4})

    def ours_in_onnx(*, symmetric: bool) -> Made:
        made = setting.exported("onnx", setting.run(128, symmetric=symmetric))
        return Made(in_onnxruntime(made / "model.onnx"), weights_size(made, "model.onnx*"))

    def quantized_by_ort() -> Made:
        dense = setting.exported("onnx", setting.model, type="f32")
        made = setting.once("onnx-theirs", lambda out: ort_quantize(dense / "model.onnx", out))
        return Made(in_onnxruntime(made / "model.onnx"), weights_size(made, "model.onnx*"))

    yield "onnx: MatMulNBitsQuantizer", quantized_by_ort
    yield "onnx: ours, symmetric", lambda: ours_in_onnx(symmetric=True)
    yield "onnx: ours", lambda: ours_in_onnx(symmetric=False)

    outer = {"bits": 8, "group_size": -1, "symmetric": False}

    def ours_in_openvino(*, symmetric: bool) -> Made:
        made = setting.exported("openvino", setting.run(128, symmetric=symmetric, outer=outer))
        return Made(in_openvino(made / "openvino_model.xml"), weights_size(made, "openvino_model.bin"))

    def compressed(name: str) -> Made:
        dense = setting.exported("openvino", setting.model, type="f32")
        made = setting.once(name.replace(" ", "-"), lambda out: nncf_compress(setting, dense, out, NNCF[name]))
        return Made(in_openvino(made / "openvino_model.xml"), weights_size(made, "openvino_model.bin"))

    for name in NNCF if setting.nncf is not None else ():
        yield f"openvino: {name}", lambda name=name: compressed(name)
    yield "openvino: ours", lambda: ours_in_openvino(symmetric=True)
    yield "openvino: ours, asymmetric", lambda: ours_in_openvino(symmetric=False)


def mlx_convert(source: Path, out: Path, *, everything: bool) -> None:
    """`mlx_lm.convert -q` at its defaults; the embedding dense unless `everything`."""
    import mlx_lm  # noqa: PLC0415 - an extra

    def wanted(path: str, *_: object) -> bool:
        return everything or ("embed" not in path and "lm_head" not in path)

    mlx_lm.convert(str(source), str(out), quantize=True, dtype="float16", quant_predicate=wanted)


def ort_quantize(source: Path, out: Path) -> None:
    """ONNX Runtime's round to nearest at its defaults, embedding and head left alone.

    It knows weights of MatMul only, [K, N]; ours are of Gemm, [N, K].
    """
    import onnx  # noqa: PLC0415 - an extra
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer  # noqa: PLC0415

    out.mkdir()
    logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer").setLevel(logging.WARNING)
    model = onnx.load(source)
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    gathered = {name for node in graph.node if node.op_type == "Gather" for name in node.input}
    for node in graph.node:
        if node.op_type == "Gemm" and node.input[1] in weights and node.input[1] not in gathered:
            tensor = weights[node.input[1]]
            values = np.ascontiguousarray(onnx.numpy_helper.to_array(tensor).T)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
            node.op_type = "MatMul"
            del node.attribute[:]
    quantizer = MatMulNBitsQuantizer(model, accuracy_level=0)
    quantizer.process()
    quantizer.model.save_model_to_file(str(out / "model.onnx"), use_external_data_format=True)


def nncf_compress(setting: Setting, dense: Path, out: Path, options: Mapping[str, Any]) -> None:
    """nncf in its environment, on text that the model writes itself."""
    assert setting.nncf is not None
    out.mkdir()
    tokens = setting.folder / "tokens.json"
    if "calibrated" in options and not tokens.exists():
        samples = calibration_samples(
            registry.open_checkpoint(setting.model), CalibrationOptions(sequences=setting.sequences)
        )
        tokens.write_text(json.dumps([[int(token) for token in row] for row in samples.sequences]), encoding="utf-8")
    settings = json.dumps({"group_size": 128, "ratio": 1.0, **options})
    script = Path(__file__).parent / "formats" / "nncf_compress.py"
    files = (dense / "openvino_model.xml", tokens, out / "openvino_model.xml")
    done = subprocess.run([setting.nncf, script, *files, settings], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"nncf failed: {done.stderr.strip().splitlines()[-1]}")


def weights_size(folder: Path, pattern: str) -> int:
    """Bytes of the files that hold weights."""
    return sum(file.stat().st_size for file in folder.glob(pattern))


def measured(made: Made, rows: Mapping[str, Sequence[torch.Tensor]], wanted: Mapping[str, list[np.ndarray]]) -> Any:
    """KL by kind of text, and bytes."""
    kl = {
        kind: float(np.mean([kl_divergence(w, made.logits(row.numpy())) for row, w in zip(found, wanted[kind])]))  # noqa: B905
        for kind, found in rows.items()
    }
    return {"kl": kl, "size": made.size}


def table(figures: Mapping[str, Any]) -> Iterator[str]:
    """Markdown."""
    kinds = list(next(iter(figures.values()))["kl"])
    yield "| weights | MB | " + " | ".join(f"KL, {kind}" for kind in kinds) + " |"
    yield "|---|---|" + "---|" * len(kinds)
    for name, found in figures.items():
        yield f"| {name} | {found['size'] / 1e6:.2f} | " + " | ".join(f"{found['kl'][k]:.2e}" for k in kinds) + " |"


def verdicts(figures: Mapping[str, Any]) -> Iterator[tuple[bool, str]]:
    """Whether each target is met, and the line that says so; ours is the best row of its group at the same bytes."""
    groups: dict[str, dict[str, Any]] = {}
    for full, found in figures.items():
        group, name = full.split(": ", 1)
        groups.setdefault(group, {})[name] = found
    for group, rows in groups.items():
        for name, found in rows.items():
            most = found["size"] * SAME_BYTES
            ours = [row for other, row in rows.items() if other.startswith("ours") and row["size"] <= most]
            limit = MOST.get(name)
            if ours and not name.startswith("ours"):
                ratios = {kind: min(row["kl"][kind] for row in ours) / kl for kind, kl in found["kl"].items()}
                text = " ".join(f"{kind} {ratio:.2f}" for kind, ratio in ratios.items())
                missed = limit is not None and any(ratio > limit for ratio in ratios.values())
                yield missed, f"{group}: ours / {name}: {text}" + (f" (wanted {limit})" if limit is not None else "")
        tools = [found for name, found in rows.items() if name.startswith("nncf")]
        mine = [found for name, found in rows.items() if name.startswith("ours")]
        if tools and mine:
            best = {k: min(f["kl"][k] for f in mine) / min(f["kl"][k] for f in tools) for k in mine[0]["kl"]}
            text = " ".join(f"{kind} {ratio:.2f}" for kind, ratio in best.items())
            missed = any(ratio > MOST_OF_BEST for ratio in best.values())
            yield missed, f"{group}: ours / best of nncf: {text} (wanted {MOST_OF_BEST})"


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=GOLDEN, help="a folder of any model that quantkit reads")
    parser.add_argument("--rows", type=int, default=8, help="held-out sequences of each kind of text")
    parser.add_argument("--sequences", type=int, default=CalibrationOptions().sequences, help="to calibrate on")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--nncf", type=Path, help="interpreter of an environment that has nncf")
    parser.add_argument("--only", nargs="+", default=(), metavar="NAME", help="rows whose names hold one of these")
    parser.add_argument("--json", type=Path, help="file that results are added to")
    return parser.parse_args()


def main() -> int:
    """Measure, print the table; return 1 when a target is missed."""
    options = parsed()
    torch.set_num_threads(options.threads)
    kinds = text_kinds(read_corpus())
    rows = {kind: held_out_rows(options.model, found, options.rows) for kind, found in kinds.measured.items()}
    original = load_model(registry.open_checkpoint(options.model))
    with torch.no_grad():
        wanted = {kind: [original(row)[0].numpy() for row in found] for kind, found in rows.items()}
    figures: dict[str, Any] = {}
    if options.json is not None and options.json.exists():
        figures = json.loads(options.json.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(options.model, Path(folder), options.threads, options.sequences, options.nncf)
        for name, make in rows_of(setting):
            if options.only and not any(part in name for part in options.only):
                continue
            figures[name] = measured(make(), rows, wanted)
            print(f"{name:45} {figures[name]['size'] / 1e6:7.2f} MB  {figures[name]['kl']}", flush=True)
            if options.json is not None:
                options.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    print("\n" + "\n".join(table(figures)) + "\n")
    found = list(verdicts(figures))
    print("\n".join(text for _, text in found))
    return int(any(missed for missed, _ in found))


if __name__ == "__main__":
    sys.exit(main())
