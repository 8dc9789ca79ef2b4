"""How much does quantization damage the golden model, and is our GPTQ a good one?

    python -m benchmarks.first_quality [--model DIR] [--bits 2 3 4 8] [--threads 2]

KL(original || quantized) per token, in nats, on text that the model has not seen in training (`golden/corpus.py`
holds modules out), for groups of 128, symmetric:

    rtn                  round to nearest
    textbook             the paper's loop as it stands, float64, one column at a time, on inputs caught by hooks in
                         passes from the embedding on; shares no code with ours
    gptq, paper's stages ours with everything off that the paper does not have
    gptq                 ours as `quantkit quantize` does it
    gptq, training text  the same, calibrated on as many tokens that the model was trained on

All but the last are calibrated on the same sequences, which the model itself has written: the default.

Exits with 1 when GPTQ at 4 bits is not at most 0.45 x round to nearest, the paper's stages are not within 2 % of the
textbook loop, or round to nearest does not hurt the model at 4 bits and break it at 2.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch

from golden.corpus import Document, read_corpus, split_corpus
from quantkit.calibration.compute import Compute
from quantkit.calibration.samples import CalibrationFile, CalibrationOptions, Samples
from quantkit.calibration.sources import calibration_samples
from quantkit.methods.gptq import Gptq
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.loading import load_model, read_float32
from quantkit.models.torch_model import MiniCPM
from quantkit.pipeline.options import QuantizeOptions
from quantkit.pipeline.quantization import Quantization
from quantkit.registry import open_checkpoint
from quantkit.solver.stages import Stages
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.text.tokenizer import open_tokenizer
from quantkit.threads import single_threaded_torch
from quantkit.verification.metrics import kl_divergence
from tests.support.runs import quantized

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "model"
GROUP = 128
LENGTH = 512
STAGES = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
RTN_HURTS, RTN_BREAKS = 4e-3, 0.1
GPTQ_TO_RTN, GPTQ_TO_TEXTBOOK = 0.45, 0.02


def held_out_rows(model: Path, documents: Sequence[Document], count: int) -> list[torch.Tensor]:
    """At most `count` sequences of LENGTH tokens, BOS first, spread evenly over the documents."""
    tokenizer = open_tokenizer(open_checkpoint(model))
    ids = [token for item in documents for token in [*tokenizer.encode(item.text, add_bos=False), 2]]
    windows = len(ids) // (LENGTH - 1)
    count = min(count, windows)
    starts = [i * windows // count * (LENGTH - 1) for i in range(count)]
    return [torch.tensor([[*tokenizer.beginning, *ids[start : start + LENGTH - 1]]]) for start in starts]


def training_samples(checkpoint: Checkpoint, documents: Sequence[Document], options: CalibrationOptions) -> Samples:
    """Calibration sequences from documents that the model was trained on, read as a user's file would be."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "text.jsonl"
        long = (item.text for item in documents if len(item.text) > 4 * LENGTH)
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in long), encoding="utf-8")
        given = CalibrationOptions(
            files=(CalibrationFile(path=file),), own_text=False, sequences=options.sequences, length=options.length
        )
        return calibration_samples(checkpoint, given)


@torch.inference_mode()
def divergence(original: MiniCPM, changed: MiniCPM, rows: Sequence[torch.Tensor]) -> float:
    """Mean KL(original || changed) over all positions of the rows."""
    with single_threaded_torch():  # on a busy machine OpenMP's threads spend their time waiting for each other
        return float(np.mean([kl_divergence(original(row)[0].numpy(), changed(row)[0].numpy()) for row in rows]))


def ours(checkpoint: Checkpoint, run: Quantization) -> MiniCPM:
    """The model as `run` makes it, with the norms that smoothing changes."""
    model = load_model(checkpoint)
    for name, view in run.checkpoint.weights.items():
        if view is not checkpoint.weights[name]:
            model.get_parameter(name).copy_(torch.from_numpy(read_float32(view)))
    return model


@torch.no_grad()
def textbook(checkpoint: Checkpoint, bits: int, samples: Samples, group: int = GROUP) -> MiniCPM:
    """The model by the paper's loop: for every stage of every block a pass from the start."""
    model = load_model(checkpoint)
    torch.set_num_threads(1)
    for block in model.model.layers:
        for stage in STAGES:
            layers = [module for name, module in block.named_modules() if name.split(".")[-1] in stage]
            H = np.zeros((layers[0].in_features, layers[0].in_features))

            def catch(_: torch.nn.Module, inputs: tuple[torch.Tensor], H: np.ndarray = H) -> None:
                X = inputs[0][0].double().numpy()
                H += X.T @ X
                raise _CaughtError

            hook = layers[0].register_forward_pre_hook(catch)
            for row in samples.sequences:
                with suppress(_CaughtError):
                    model(torch.from_numpy(row)[None])
            hook.remove()
            for layer in layers:
                layer.weight.copy_(torch.from_numpy(textbook_loop(layer.weight.numpy(), H, bits, group)))
    return model


class _CaughtError(Exception):
    """Ends a pass when the inputs that it was made for are known."""


def textbook_loop(weight: np.ndarray, H: np.ndarray, bits: int, group: int) -> np.ndarray:
    """Algorithm 1 of the GPTQ paper, without its lazy batches."""
    W, Q = weight.astype(np.float64), np.zeros(weight.shape)
    cols = W.shape[1]
    U = np.linalg.cholesky(np.linalg.inv(H + 0.01 * np.mean(np.diag(H)) * np.eye(cols))).T
    half = 2 ** (bits - 1)
    for j in range(cols):
        if j % group == 0:
            scale = np.abs(W[:, j : j + group]).max(axis=1) / (half - 0.5)
            scale = scale.astype(np.float16).astype(np.float64)
        Q[:, j] = scale * np.clip(np.rint(W[:, j] / scale), -half, half - 1)
        W[:, j:] -= np.outer((W[:, j] - Q[:, j]) / U[j, j], U[j, j:])
    return Q.astype(np.float32)


def timed(make: Callable[[], MiniCPM]) -> tuple[MiniCPM, float]:
    """What `make` makes, and the seconds that it took."""
    start = time.perf_counter()
    return make(), time.perf_counter() - start


def check(kl: dict[tuple[int, str], float]) -> list[str]:
    """The targets that were missed, one line each."""
    missed = []
    if (4, "rtn") in kl:
        ratio, excess = kl[4, "gptq"] / kl[4, "rtn"], kl[4, "gptq, paper's stages"] / kl[4, "textbook"] - 1
        if not kl[4, "rtn"] >= RTN_HURTS:
            missed.append(f"round to nearest at 4 bits: KL {kl[4, 'rtn']:.2e}, at least {RTN_HURTS:g} wanted")
        if not ratio <= GPTQ_TO_RTN:
            missed.append(f"gptq at 4 bits: {ratio:.3f} x round to nearest, at most {GPTQ_TO_RTN} wanted")
        if not abs(excess) <= GPTQ_TO_TEXTBOOK:
            missed.append(
                f"the paper's stages at 4 bits: {excess:+.1%} off the textbook, at most {GPTQ_TO_TEXTBOOK:.0%} wanted"
            )
    if (2, "rtn") in kl and not kl[2, "rtn"] >= RTN_BREAKS:
        missed.append(f"round to nearest at 2 bits: KL {kl[2, 'rtn']:.2e}, at least {RTN_BREAKS:g} wanted")
    return missed


def main() -> int:
    """Print the table; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=GOLDEN)
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4, 8])
    parser.add_argument("--samples", type=int, default=CalibrationOptions().sequences)
    parser.add_argument("--length", type=int, default=CalibrationOptions().length)
    parser.add_argument("--rows", type=int, default=64, help=f"held-out sequences of {LENGTH} tokens")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    checkpoint = open_checkpoint(arguments.model)
    options = CalibrationOptions(sequences=arguments.samples, length=arguments.length)
    train, held_out = split_corpus(read_corpus())
    rows = held_out_rows(arguments.model, held_out, arguments.rows)
    start = time.perf_counter()
    generated = calibration_samples(checkpoint, options, threads=arguments.threads)
    print(f"{generated.coverage.tokens:,} calibration tokens generated in {time.perf_counter() - start:.1f} s")
    given = training_samples(checkpoint, train, options)
    original = load_model(checkpoint)
    kl: dict[tuple[int, str], float] = {}
    print(f"{'bits':<6}{'method':<22}{'KL':>10}{'x rtn':>8}{'seconds':>9}")
    for bits in arguments.bits:
        spec = AffineGroups(bits=bits, group_size=GROUP)

        def plain(spec: AffineGroups = spec) -> MiniCPM:
            paper = Gptq(Stages(search=False, act_order=False, rounds=0, damping=0.01))
            run = Quantization(
                checkpoint,
                QuantizeOptions(
                    method=paper,
                    scheme=spec,
                    calibration=CalibrationOptions(skip_positions=0),
                    propagate=False,
                    fisher=False,
                ),
                compute=Compute(threads=arguments.threads, bfloat16=False),
                samples=generated,
            )
            return ours(checkpoint, run)

        def default(method: str, samples: Samples | None, spec: AffineGroups = spec) -> MiniCPM:
            return ours(checkpoint, quantized(checkpoint, spec, method, calibration=samples, threads=arguments.threads))

        makers: dict[str, Callable[[], MiniCPM]] = {
            "rtn": partial(default, "rtn", None),
            "textbook": partial(textbook, checkpoint, bits, generated),
            "gptq, paper's stages": plain,
            "gptq": partial(default, "gptq", generated),
            "gptq, training text": partial(default, "gptq", given),
        }
        for name, make in makers.items():
            model, seconds = timed(make)
            kl[bits, name] = divergence(original, model, rows)
            ratio = kl[bits, name] / kl[bits, "rtn"]
            print(f"{bits:<6}{name:<22}{kl[bits, name]:>10.2e}{ratio:>8.3f}{seconds:>9.1f}", flush=True)
    missed = check(kl)
    print("\n".join(missed) if missed else "all targets met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
