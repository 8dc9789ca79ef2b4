"""Does the golden model in real engines predict what the original predicts?

    python -m benchmarks.first_light [--model DIR] [--golden FILE]

Every golden prompt, every position: the largest |Δ log-prob| from the golden logits, KL, and top-1 agreement. Engines
round the inputs of float16 and bfloat16 matrices to that dtype; the rows "original, inputs rounded" do the same in the
torch model, so they tell how much of a difference is the engine's arithmetic and how much could be ours.
Last, the token ids of tests/support/strings.py by the GGUF's own tokenizer in llama.cpp against the Hugging Face
tokenizer.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.models.loading import load_model
from quantkit.protocols import ExportOptions
from quantkit.verification.golden import Golden, read_golden
from quantkit.verification.report import Check, Comparison
from tests.support.strings import STRINGS

ROOT = Path(__file__).resolve().parent.parent
LIMITS = {"f32": 1e-3, "f16": 5e-3, "bf16": 2e-2}
DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16}


def show(name: str, golden: Golden, found: Sequence[np.ndarray], limit: float | None) -> bool:
    """Print one row; True when it is within `limit`."""
    compared = zip(golden.prompts, golden.logits, found, strict=True)
    comparisons = tuple(Comparison.of(prompt.name, p, q) for prompt, p, q in compared)
    check = Check(name, "max_abs_log_prob_difference", np.inf if limit is None else limit, comparisons)
    verdict = "" if limit is None else f"at most {limit:g}: {'ok' if check.passed else 'MISSED'}"
    print(
        f"{name:34s} max |d log-prob| {check.value:.2e}  KL {check.kl:.1e}  top-1 {check.top1:.2%}  {verdict}",
        flush=True,
    )
    return limit is None or check.passed


def in_engine(engine: str, path: Path, golden: Golden) -> list[np.ndarray]:
    """Logits of every golden prompt."""
    with registry.runtime(engine).open(path) as session:
        return [session.logits(prompt.token_ids) for prompt in golden.prompts]


@torch.inference_mode()
def with_rounded_inputs(model_folder: Path, golden: Golden, dtype: torch.dtype) -> list[np.ndarray]:
    """The torch model, every matrix's input rounded to `dtype`, everything else in float32."""
    model = load_model(registry.open_checkpoint(model_folder))

    def rounded(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (inputs[0].to(dtype).float(),)

    for name, module in model.named_modules():
        if name.endswith("proj"):
            module.register_forward_pre_hook(rounded)
    norm = model.model.norm
    norm.register_forward_hook(
        lambda _, __, x: (x / model.spec.logit_divisor).to(dtype).float() * model.spec.logit_divisor
    )
    return [model(torch.tensor([prompt.token_ids]))[0].numpy() for prompt in golden.prompts]


def same_tokens(model_folder: Path, path: Path) -> tuple[int, int]:
    """How many strings get the same ids, of how many."""
    import tokenizers  # noqa: PLC0415 - wanted by this row alone

    fast = tokenizers.Tokenizer.from_file(str(model_folder / "tokenizer.json"))
    with registry.runtime("llama-cpp").open(path) as session:
        same = sum(
            session.tokenize(text, add_special=True, parse_special=True) == fast.encode(text).ids for text in STRINGS
        )
    return same, len(STRINGS)


def main() -> int:
    """Print the table; return 1 when a row misses its limit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "golden" / "model")
    parser.add_argument("--golden", type=Path, default=ROOT / "golden" / "golden.bin")
    options = parser.parse_args()
    golden = read_golden(options.golden)
    checkpoint = registry.open_checkpoint(options.model)
    ok = True
    with tempfile.TemporaryDirectory() as name:
        for kind, limit in LIMITS.items():
            for arch in ("native", "llama"):
                path = Path(name) / f"{kind}-{arch}.gguf"
                publish(registry.exporter("gguf").prepare(checkpoint, ExportOptions(type=kind, arch=arch)), path)
                ok &= show(f"llama.cpp, gguf {kind} {arch}", golden, in_engine("llama-cpp", path, golden), limit)
            if kind in DTYPES:
                rounded = with_rounded_inputs(options.model, golden, DTYPES[kind])
                show(f"original, inputs rounded to {kind}", golden, rounded, None)
        folder = Path(name) / "llama"
        publish(registry.exporter("hf").prepare(checkpoint, ExportOptions(type="f32", arch="llama")), folder)
        ok &= show("transformers, hf f32 llama", golden, in_engine("transformers", folder, golden), 1e-3)
        same, count = same_tokens(options.model, Path(name) / "f16-native.gguf")
    print(f"tokenizer: {same} of {count} strings have the same ids")
    return 0 if ok and same == count else 1


if __name__ == "__main__":
    sys.exit(main())
