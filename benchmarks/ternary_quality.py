"""What is left of a model at three and at four levels, without training: ours beside what people have.

    python -m benchmarks.ternary_quality [--model DIR] [--text FILE] [--sequences N] [--rows 24] [--json FILE]
                                         [--only TEXT ...]

KL(original || quantized) per token on held-out text of three kinds (`benchmarks/text_kinds.py`), of which the first is
also calibrated on, joined by text that the model writes: what `quantkit quantize --calibration FILE` does. For the
first kind also perplexity and the share of positions whose most likely token is the same; and bits per linear weight.

    absmean        s = mean |w| of a group, clamp(round(w / s), -1, 1): what BitCPM's training starts from
    textbook       GPTQ as the paper has it, 2 bits with scales that cover the group (`benchmarks/first_quality.py`)
    Q2_0 of ggml   llama.cpp's own rounding to four levels, by its library; without xllamacpp it is left out
    ternary        `quantkit quantize --method ternary`, by group size; "row" is the default
    four levels    the same with `--levels 4`, which is GGUF's Q2_0
    affine         `quantkit quantize --bits 2 --asym`

Groups are of 128 and 64; of 64 alone where 128 does not divide the columns of every layer. The table can be made in
parts: --only makes the rows whose names contain one of its texts, --json adds them to those that are in the file.

Exits with 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.first_quality import GOLDEN, textbook
from benchmarks.int4_quality import prepared
from benchmarks.int4_rows import Setting, by_scheme
from quantkit.calibration.samples import CalibrationFile
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.loading import load_model
from quantkit.models.spec import LINEAR_ROLES
from quantkit.models.torch_model import MiniCPM
from quantkit.tensors.scheme import PER_ROW, Scheme
from quantkit.tensors.schemes.affine_groups import TERNARY, AffineGroups
from quantkit.threads import single_threaded_torch
from quantkit.verification.metrics import compared, perplexity

FULL = "full precision"
Q2_0_ID, Q2_0_GROUP, Q2_0_BYTES = 42, 64, 18
FOUR_LEVELS = AffineGroups(bits=2, group_size=Q2_0_GROUP)
WIDTHS = (128, 64)
"""Groups that are measured where they divide the columns of every layer."""
TARGETS = (
    *((f"ternary {group}", f"absmean {group}", 0.09) for group in ("row", *map(str, WIDTHS))),
    *(("ternary row", f"textbook {group}", 1.0) for group in WIDTHS),
    ("four levels 64", "ternary 64", 1.0),
    ("four levels 64", "Q2_0 of ggml", 0.25),
    *((f"affine {group}", f"textbook {group}", 0.30) for group in WIDTHS),
)
"""Row, what it is held against, and the largest ratio of their KL on each kind of text."""


@dataclass(frozen=True, slots=True)
class Figures:
    """KL by kind of text, in nats; perplexity and top-1 agreement on the first kind; bits per linear weight."""

    kl: Mapping[str, float]
    perplexity: float
    top1: float
    bits: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Row:
    """How a model is made, and what its linear weights take, None where they are as they were."""

    make: Callable[[], MiniCPM]
    bits: float | None


def absmean(checkpoint: Checkpoint, group: int) -> MiniCPM:
    """The model with every linear weight rounded by the mean magnitude of its group, in bfloat16."""

    def rounded(weight: torch.Tensor) -> torch.Tensor:
        groups = weight.reshape(len(weight), -1, weight.shape[1] if group == PER_ROW else group)
        scale = groups.abs().mean(-1, keepdim=True).bfloat16().float()
        return groups.div(scale).round_().clamp_(-1, 1).mul_(scale).reshape(weight.shape)

    return changed(checkpoint, rounded)


def ggml_q2_0(checkpoint: Checkpoint) -> MiniCPM:
    """The model with every linear weight rounded by llama.cpp's library, read back by its documented layout."""
    spec = importlib.util.find_spec("xllamacpp")
    assert spec is not None
    assert spec.origin is not None
    library = ctypes.CDLL(str(next(Path(spec.origin).parent.glob("xllamacpp*.so"))))

    def rounded(weight: torch.Tensor) -> torch.Tensor:
        values = np.ascontiguousarray(weight.numpy())
        packed = np.zeros((weight.numel() // Q2_0_GROUP, Q2_0_BYTES), np.uint8)
        rows, cols = (ctypes.c_int64(size) for size in weight.shape)
        pointers = (ctypes.c_void_p(x.ctypes.data) for x in (values, packed))
        library.ggml_quantize_chunk(Q2_0_ID, *pointers, ctypes.c_int64(0), rows, cols, None)
        scale = packed[:, :2].copy().view(np.float16).astype(np.float32)
        codes = (packed[:, 2:, None] >> np.arange(0, 8, 2, dtype=np.uint8)) & 3
        made = (codes.reshape(-1, Q2_0_GROUP).astype(np.float32) - 1) * scale
        return torch.from_numpy(made.reshape(weight.shape))

    return changed(checkpoint, rounded)


@torch.no_grad()
def changed(checkpoint: Checkpoint, rounded: Callable[[torch.Tensor], torch.Tensor]) -> MiniCPM:
    """The model with every linear weight replaced."""
    model = load_model(checkpoint)
    for slot in checkpoint.spec.slots():
        if slot.role in LINEAR_ROLES:
            weight = model.get_parameter(slot.name)
            weight.copy_(rounded(weight))
    return model


def rows_of(setting: Setting) -> Iterator[tuple[str, Row]]:
    """Every row by name, in the order of the table."""
    checkpoint, joined = setting.checkpoint, replace(setting.options, files=(CalibrationFile(path=setting.file),))

    def ours(method: str, scheme: Scheme) -> Row:
        return Row(lambda: by_scheme(setting, method, scheme, joined).model, bits_of(checkpoint, scheme))

    columns = {slot.shape[1] for slot in checkpoint.spec.slots() if slot.role in LINEAR_ROLES}
    widths = [width for width in WIDTHS if all(count % width == 0 for count in columns)]
    ternary = {"row": TERNARY} | {str(width): replace(TERNARY, group_size=width) for width in widths}
    yield FULL, Row(partial(load_model, checkpoint), None)
    for name, scheme in ternary.items():
        naive = partial(absmean, checkpoint, scheme.group_size)
        yield f"absmean {name}", Row(naive, bits_of(checkpoint, scheme))
    paper = partial(textbook, checkpoint, 2, setting.samples, widths[0])
    yield f"textbook {widths[0]}", Row(paper, bits_of(checkpoint, AffineGroups(bits=2, group_size=widths[0])))
    if importlib.util.find_spec("xllamacpp") is not None:
        yield "Q2_0 of ggml", Row(partial(ggml_q2_0, checkpoint), bits_of(checkpoint, FOUR_LEVELS))
    for name, scheme in ternary.items():
        yield f"ternary {name}", ours("ternary", scheme)
    yield "four levels 64", ours("ternary", FOUR_LEVELS)
    affine = AffineGroups(bits=2, group_size=widths[0], symmetric=False)
    yield f"affine {widths[0]}", ours("gptq", affine)


def bits_of(checkpoint: Checkpoint, scheme: Scheme) -> float:
    """Bits of codes and scales per linear weight."""
    shapes = [slot.shape for slot in checkpoint.spec.slots() if slot.role in LINEAR_ROLES]
    return sum(scheme.stored_bits(*shape) for shape in shapes) / sum(rows * cols for rows, cols in shapes)


@torch.inference_mode()
def measured(original: MiniCPM, model: MiniCPM, texts: Mapping[str, Sequence[torch.Tensor]]) -> Figures:
    """Figures of a model but for the bits and seconds."""
    kl, top1, surprise = {}, 0.0, 0.0
    with single_threaded_torch():
        for number, (kind, rows) in enumerate(texts.items()):
            logits = [(original(row)[0].numpy(), model(row)[0].numpy(), row[0].tolist()) for row in rows]
            found = [compared(trusted, tested)[0] for trusted, tested, _ in logits]
            kl[kind] = float(np.mean([one.kl for one in found]))
            if number == 0:
                top1 = float(np.mean([one.top1 for one in found]))
                surprise = float(np.mean([np.log(perplexity(tested, ids)) for _, tested, ids in logits]))
    return Figures(kl, float(np.exp(surprise)), top1, 16.0, 0.0)


def table(figures: Mapping[str, Figures]) -> Iterator[str]:
    """Markdown."""
    kinds = list(figures[FULL].kl)
    yield f"| weights | bits | {' | '.join(f'KL, {kind}' for kind in kinds)} | perplexity | top-1 | seconds |"
    yield "|---" * (len(kinds) + 5) + "|"
    for name, one in figures.items():
        cells = " | ".join(f"{one.kl[kind]:.4f}" for kind in kinds)
        yield f"| {name} | {one.bits:.2f} | {cells} | {one.perplexity:.2f} | {one.top1:.3f} | {one.seconds:.0f} |"


def verdicts(figures: Mapping[str, Figures]) -> Iterator[tuple[str, bool]]:
    """A line for every target and kind of text, and whether it is met."""
    for name, other, most in TARGETS:
        if name in figures and other in figures:
            for kind, kl in figures[name].kl.items():
                ratio = kl / figures[other].kl[kind]
                yield f"{ratio:.4f} {kind}: {name} / {other}, at most {most:g}", ratio <= most


def main() -> int:
    """Measure, print the table; return 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=GOLDEN)
    parser.add_argument("--text", type=Path, help="UTF-8 text that the model was trained on, in place of our prose")
    parser.add_argument("--sequences", type=int, default=128, help="to calibrate on")
    parser.add_argument("--rows", type=int, default=24, help="held-out sequences of each kind of text")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=[""], help="rows whose names contain one of these")
    parser.add_argument("--json", type=Path, help="file that figures are added to")
    options = parser.parse_args()
    options.group_size, options.gptqmodel = Q2_0_GROUP, None
    torch.set_num_threads(options.threads)
    figures: dict[str, Figures] = {}
    if options.json is not None and options.json.exists():
        kept = json.loads(options.json.read_text(encoding="utf-8"))
        figures = {name: Figures(**one) for name, one in kept.items()}
    with tempfile.TemporaryDirectory() as folder:
        setting, _ = prepared(options, Path(folder))
        original = load_model(setting.checkpoint)
        wanted = ((name, row) for name, row in rows_of(setting) if any(text in name for text in options.only))
        for name, row in wanted:
            start = time.perf_counter()
            model = row.make()
            seconds = time.perf_counter() - start
            found = measured(original, model, setting.rows)
            figures[name] = replace(found, bits=16.0 if row.bits is None else row.bits, seconds=seconds)
            print(f"{name:16}" + "".join(f"  {kind} {kl:.4f}" for kind, kl in found.kl.items()), flush=True)
            if options.json is not None:
                kept = json.dumps({name: asdict(one) for name, one in figures.items()}, indent=1)
                options.json.write_text(kept + "\n", encoding="utf-8")
    print("\n" + "\n".join(table(figures)) + "\n")
    found_verdicts = list(verdicts(figures))
    print("\n".join(f"{'pass' if good else 'FAIL'}  {line}" for line, good in found_verdicts))
    return 0 if all(good for _, good in found_verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
