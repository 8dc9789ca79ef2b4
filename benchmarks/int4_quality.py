"""How good are our 4-bit codes, stage by stage, against textbook GPTQ and GPTQModel?

    python -m benchmarks.int4_quality [--model DIR] [--bits 4 3] [--threads 2] [--gptqmodel PYTHON] [--text FILE]

KL(original || quantized) per token, in nats, on held-out text (`golden/corpus.py` holds modules out), groups of 128,
symmetric. Every row sees the same calibration sequences:

    rtn             round to nearest
    textbook        the paper's loop, independent of our code (`benchmarks/first_quality.py`)
    gptqmodel ...   GPTQModel, its defaults and its act-order, GAR and GPTAQ options, run in an environment of its own
                    (`--gptqmodel` names its interpreter) on the folded model
    ours ...        our stages, each on top of those above it; `default` is what `quantkit quantize` does

--model may be any MiniCPM folder; --text calibrates and measures on halves of a text file instead of the standard
library, for a model that was trained on another text.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.first_quality import GOLDEN, LENGTH, divergence, held_out_rows, textbook, training_samples
from golden.corpus import read_corpus, split_corpus
from quantkit import registry
from quantkit.artifact import publish
from quantkit.calibration_text import CalibrationOptions, Samples
from quantkit.checkpoint import Checkpoint
from quantkit.loading import load_model
from quantkit.methods.gptq import Gptq
from quantkit.model import MiniCPM
from quantkit.protocols import ExportOptions, Method
from quantkit.quantize import Quantization
from quantkit.spec import QuantSpec
from quantkit.tensor import QuantizedView

GPTQMODEL_SCRIPT = Path(__file__).with_name("gptqmodel_quantize.py")
GPTQMODEL_OPTIONS = {
    "gptqmodel default": {},
    "gptqmodel act-order": {"desc_act": True, "act_group_aware": False},
    "gptqmodel plain": {"desc_act": False, "act_group_aware": False},
    "gptqmodel gptaq": {"gptaq": True},
}
DEFAULT_TO_DEFAULT, DEFAULT_TO_BEST = 0.50, 0.80

Stage = tuple[str, Method, int, bool]


def stages() -> Iterator[Stage]:
    """Name, method, skipped positions and propagation of our rows, each stage on top of the one before."""
    yield "ours: feedback", Gptq(search=False, act_order=False, rounds=0), 0, False
    yield "ours: + P-GPTQ", Gptq(search=False, act_order=False, rounds=0), 4, False
    yield "ours: + act-order", Gptq(search=False, act_order=True, rounds=0), 4, False
    yield "ours: + search", Gptq(rounds=0), 4, False
    yield "ours: + refine", Gptq(), 4, False
    yield "ours: + propagation", Gptq(), 4, True


def quantized_model(run: Quantization, checkpoint: Checkpoint) -> MiniCPM:
    """The torch model with the run's weights."""
    model = load_model(checkpoint)
    for name, view in run.checkpoint.weights.items():
        if isinstance(view, QuantizedView):
            model.get_parameter(name).copy_(torch.from_numpy(view.read().dequantized()))
    return model


def gptqmodel(
    python: Path, folder: Path, samples: Samples, bits: int, options: dict[str, object], out: Path
) -> MiniCPM:
    """Quantize the folded model with GPTQModel in its own environment; read what it wrote with our reader."""
    tokens = out.with_suffix(".json")
    tokens.write_text(json.dumps([row.tolist() for row in samples.sequences]))
    settings = json.dumps({"bits": bits, "group_size": 128, "sym": True, **options})
    command = [str(python), str(GPTQMODEL_SCRIPT), str(folder), str(tokens), str(out), settings]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    checkpoint = registry.open_checkpoint(out)
    return load_model(checkpoint)


def main() -> int:
    """Print the table as it grows; return 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=GOLDEN)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3])
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--sequences", type=int, default=60)
    parser.add_argument("--rows", type=int, default=64, help="held-out sequences of 512 tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--gptqmodel", type=Path, help="interpreter of an environment that has GPTQModel")
    options = parser.parse_args()

    checkpoint = registry.open_checkpoint(options.model)
    train, held_out = split_corpus(read_corpus())
    rows = held_out_rows(options.model, held_out, options.rows)
    wanted = CalibrationOptions(sequences=options.sequences, length=LENGTH)
    samples = training_samples(checkpoint, train, wanted)
    torch.set_num_threads(options.threads)
    original = load_model(checkpoint)
    print(f"{samples.coverage.sequences} calibration sequences, {samples.coverage.tokens} tokens; {len(rows)} held out")
    failed = False
    for bits in options.bits:
        spec = QuantSpec(bits=bits, group_size=options.group_size)
        kl: dict[str, float] = {}

        def tell(name: str, make: Callable[[], MiniCPM], kl: dict[str, float] = kl, bits: int = bits) -> None:
            start = time.perf_counter()
            model = make()
            seconds = time.perf_counter() - start
            kl[name] = divergence(original, model, rows)
            print(
                f"{bits} bits  {name:24s} {kl[name]:.3e}  {kl[name] / kl['rtn']:6.3f} x rtn  {seconds:6.1f} s",
                flush=True,
            )

        def ours(method: Method, skip: int, propagate: bool, spec: QuantSpec = spec) -> MiniCPM:
            run = Quantization(
                checkpoint,
                spec,
                method,
                calibration=samples,
                skip_positions=skip,
                propagate=propagate,
                threads=options.threads,
            )
            return quantized_model(run, checkpoint)

        tell("rtn", lambda: ours(registry.method("rtn"), 0, False))
        if options.group_size == 128:
            tell("textbook", lambda bits=bits: textbook(checkpoint, bits, samples))
        for name, method, skip, propagate in stages():
            tell(name, lambda m=method, s=skip, p=propagate: ours(m, s, p))
        if options.gptqmodel:
            failed |= compare_gptqmodel(options.gptqmodel, checkpoint, samples, bits, kl, tell)
    return int(failed)


def compare_gptqmodel(
    python: Path,
    checkpoint: Checkpoint,
    samples: Samples,
    bits: int,
    kl: dict[str, float],
    tell: Callable[[str, Callable[[], MiniCPM]], None],
) -> bool:
    """Add GPTQModel's rows, then say whether our default keeps the targets; True when it does not."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "llama"
        planned = registry.exporter("hf").prepare(checkpoint, ExportOptions(type="f32", arch="llama"))
        publish(planned, folder)
        for label, settings in GPTQMODEL_OPTIONS.items():
            out = Path(name) / label.replace(" ", "-")
            tell(label, lambda s=settings, o=out: gptqmodel(python, folder, samples, bits, s, o))
    mine = kl["ours: + propagation"]
    default, best = kl["gptqmodel default"], min(value for label, value in kl.items() if "gptqmodel" in label)
    print(f"{bits} bits  default / GPTQModel default {mine / default:.3f} (at most {DEFAULT_TO_DEFAULT})")
    print(f"{bits} bits  default / GPTQModel best    {mine / best:.3f} (at most {DEFAULT_TO_BEST})")
    return mine > DEFAULT_TO_DEFAULT * default or (bits == 4 and mine > DEFAULT_TO_BEST * best)


if __name__ == "__main__":
    sys.exit(main())
