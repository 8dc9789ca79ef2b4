"""Train a golden model: a tiny MiniCPM4 that has really learned something.

Quantization errors of random weights say little about a model. This one reads the standard library of the
interpreter (`golden/corpus.py`) until it predicts held-out modules far better than a trigram does, and is then
written as a checkpoint folder in the exact style of MiniCPM4: bf16, muP scalars, LongRoPE. There are two of them, the
calm one and with `--untuned` another; `golden/recipes.py` says what they are.

The same seed, thread count, processor kind and library versions give the same weights.

    python golden/train.py [--untuned] [--share X] [--seed S] [--text FILE] [--device cpu|cuda] [--out DIR]

With `--text` the same architecture learns, tokenizer included, from another text (`golden.corpus.read_text`).
"""

import argparse
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from golden.corpus import Document, read_corpus, read_text, split_corpus
from golden.recipes import BOS, CALM, EOS, GENERATION_CONFIG, UNTUNED, Phase
from golden.tokenizer import VOCAB_SIZE, GoldenTokenizer, train_sentencepiece, write_json, write_tokenizer
from golden.trigram import trigram_perplexity
from quantkit.models.recognition import parse_config
from quantkit.models.torch_model import MiniCPM

Tokens = NDArray[np.int64]


NOISE = 0.03
NORM = 6
"""Of the differences of log-probabilities: high enough for the few that are largest to count most."""

BATCH_TOKENS = 2048
WARMUP_STEPS = 100


def encode_documents(tokenizer: GoldenTokenizer, documents: list[Document]) -> list[Tokens]:
    """Return the ids of every document: BOS before it and, except after a chat, EOS behind it."""
    end = {"source": [EOS], "prose": [EOS], "text": [EOS], "cjk": [EOS], "chat": []}
    return [np.array(tokenizer.encode(item.text) + end[item.kind], dtype=np.int64) for item in documents]


def learn_pieces(documents: list[Document]) -> bytes:
    """Train the SentencePiece model on these documents; on the standard library where they are too poor for it."""
    try:
        return train_sentencepiece(item.text for item in documents if item.kind in {"source", "text"})
    except RuntimeError as error:
        print(f"no {VOCAB_SIZE} pieces in this text, the standard library's are taken: {error}", flush=True)
        modules, _ = split_corpus(read_corpus())
        return train_sentencepiece(item.text for item in modules if item.kind == "source")


def cut_windows(stream: Tokens, length: int) -> Tensor:
    """Cut a stream into rows [n, length + 1] that begin with BOS; every token of the stream is a target once."""
    count = len(stream) // length
    rows = stream[: count * length].reshape(count, length)
    return torch.from_numpy(np.concatenate([np.full((count, 1), BOS, dtype=np.int64), rows], axis=1))


def batches(documents: list[Tokens], length: int, seed: int) -> Iterator[Tensor]:
    """Yield batches of BATCH_TOKENS for ever; documents and windows are in a new order in every pass."""
    generator = np.random.default_rng(seed)
    size = BATCH_TOKENS // length
    while True:
        stream = np.concatenate([documents[index] for index in generator.permutation(len(documents))])
        rows = cut_windows(stream, length)
        order = torch.from_numpy(generator.permutation(len(rows)))
        for start in range(0, len(order) - size + 1, size):
            yield rows[order[start : start + size]]


def in_turn(documents: list[Tokens], lengths: Sequence[int], seed: int) -> Iterator[Tensor]:
    """Yield a batch of rows of each length in turn, for ever; each place in `lengths` has an order of its own."""
    streams = [batches(documents, length, seed + 1000 * place) for place, length in enumerate(lengths)]
    for stream in cycle(streams):
        yield next(stream)


def build_model(config: Mapping[str, Any], seed: int) -> MiniCPM:
    """Return a model with muP-style random weights: embedding std 0.1, other matrices 0.1 / sqrt(hidden / base)."""
    torch.manual_seed(seed)
    model = MiniCPM(parse_config(config))
    std = float(config["initializer_range"])
    width = math.sqrt(config["hidden_size"] / config["dim_model_base"])
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=std if "embed" in name else std / width)
    return model


def make_optimizers(model: MiniCPM, phase: Phase) -> list[torch.optim.Optimizer]:
    """Return the optimizers: Muon for the matrices in the blocks, AdamW for embedding, head and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    ends = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." not in name]
    norms = [p for p in model.parameters() if p.ndim == 1]
    groups = [
        {"params": ends, "lr": phase.embed_lr, "weight_decay": 0.0},
        {"params": norms, "lr": phase.embed_lr, "weight_decay": 0.0},
    ]
    muon = torch.optim.Muon(matrices, lr=phase.lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(groups, betas=(0.9, 0.95))]


def rate_at(step: int, steps: int) -> float:
    """Return the learning rate's factor: linear warm-up, then linear to zero."""
    warmup = min(WARMUP_STEPS, steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    return (steps - step) / (steps - warmup)


def mean_loss(logits: Tensor, rows: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of the rows' tokens after the first."""
    return cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


@contextmanager
def noisy_inputs(model: MiniCPM) -> Iterator[None]:
    """Within it the inputs of all matrices, the head included, are off by NOISE, relative to each."""

    def disturbed(x: Tensor) -> Tensor:
        return x * (1 + NOISE * torch.randn_like(x))

    layers = [module for name, module in model.named_modules() if name.endswith("_proj")]
    hooks = [layer.register_forward_pre_hook(lambda _, inputs: (disturbed(inputs[0]),)) for layer in layers]
    hooks.append(model.model.norm.register_forward_hook(lambda _, __, output: disturbed(output)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def restlessness(calm: Tensor, disturbed: Tensor) -> Tensor:
    """Return the square of the NORM-norm by which log-probabilities move per unit of noise; logits [..., vocab]."""
    moved = (calm.log_softmax(-1) - disturbed.log_softmax(-1)) / NOISE
    return moved.pow(NORM).mean().pow(2 / NORM)


def loss_of(model: MiniCPM, rows: Tensor, phase: Phase) -> tuple[Tensor, Tensor]:
    """Return what is trained on, and the plain loss in it.

    Half-precision engines round the inputs of matrices. How far a log-probability moves then differs a lot between
    models that predict equally well, and the largest move of many is what conformance tests see; large models, trained
    longer and with weight decay, are calmer than small ones by themselves.
    """
    logits = model(rows[:, :-1]).float()
    loss = mean_loss(logits, rows)
    price = phase.logit_price * logits.var(-1).mean() if phase.logit_price else 0.0
    if not phase.calm_price:
        return loss + price, loss
    with noisy_inputs(model):
        disturbed = model(rows[:, :-1]).float()
    return (loss + mean_loss(disturbed, rows)) / 2 + price + phase.calm_price * restlessness(logits, disturbed), loss


def train(model: MiniCPM, stream: Iterator[Tensor], phase: Phase, device: torch.device) -> None:
    """Run one phase and print the loss now and then."""
    optimizers = make_optimizers(model, phase)
    schedules = [LambdaLR(optimizer, partial(rate_at, steps=phase.steps)) for optimizer in optimizers]
    started, average = time.monotonic(), 0.0
    for step, rows in zip(range(phase.steps), stream, strict=False):
        with torch.autocast(device.type, torch.bfloat16):
            total, loss = loss_of(model, rows.to(device), phase)
        total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        average = loss.item() if step == 0 else 0.98 * average + 0.02 * loss.item()
        if step % 50 == 49 or step == phase.steps - 1:
            speed = (step + 1) * rows[:, 1:].numel() / (time.monotonic() - started)
            print(f"{phase.name} {step + 1:>5}/{phase.steps} loss {average:.4f} {speed:,.0f} tokens/s", flush=True)


def round_weights(model: MiniCPM) -> dict[str, Tensor]:
    """Round the model's weights to bf16 in place; return them as contiguous bf16 tensors on the CPU."""
    weights: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            weights[name] = parameter.to("cpu", torch.bfloat16).contiguous()
            parameter.copy_(weights[name])
    return weights


@torch.no_grad()
def perplexity(model: MiniCPM, stream: Tokens, length: int, device: str) -> float:
    """Return the float32 perplexity per token of a stream, in windows of `length` tokens."""
    rows = cut_windows(stream, length).to(device)
    parts = [rows[start : start + 8] for start in range(0, len(rows), 8)]
    return math.exp(sum(mean_loss(model(part[:, :-1]), part).item() * len(part) for part in parts) / len(rows))


def write_weights(weights: Mapping[str, Tensor], folder: Path, shards: int) -> None:
    """Write one file, or two shards of about equal size and their index."""
    if shards == 1:
        (folder / "model.safetensors").write_bytes(save(dict(weights), metadata={"format": "pt"}))
        return
    total = sum(tensor.nbytes for tensor in weights.values())
    names = [f"model-{number:05d}-of-00002.safetensors" for number in (1, 2)]
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    seen = 0
    for name, tensor in weights.items():
        parts[names[0] if 2 * seen < total else names[1]][name] = tensor
        seen += tensor.nbytes
    for file, tensors in parts.items():
        (folder / file).write_bytes(save(tensors, metadata={"format": "pt"}))
    weight_map = {name: file for file, tensors in parts.items() for name in tensors}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / "model.safetensors.index.json", index)


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--untuned", action="store_true", help="the model that is trained for perplexity alone")
    parser.add_argument("--share", type=float, default=1.0, help="of the usual steps, for a smaller text")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--text", type=Path, help="learn from this UTF-8 file, and not from the standard library")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads; the result depends on them")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, help="checkpoint folder; default: golden/model or golden/untuned")
    return parser.parse_args()


def main() -> None:
    """Train, write the checkpoint, and compare it with the trigram on held-out text."""
    options = parse_options()
    recipe = UNTUNED if options.untuned else CALM
    out = options.out or Path(__file__).parent / ("untuned" if options.untuned else "model")
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    train_documents, held_out_documents = split_corpus(read_text(options.text) if options.text else read_corpus())
    pieces = learn_pieces(train_documents)
    tokenizer = GoldenTokenizer(pieces)
    documents = encode_documents(tokenizer, train_documents)
    held_out = np.concatenate(encode_documents(tokenizer, held_out_documents))
    print(f"{sum(map(len, documents)):,} training tokens, {len(held_out):,} held-out tokens", flush=True)

    model = build_model(recipe.config, options.seed).to(options.device)
    for number, phase in enumerate(recipe.phases):
        stream = in_turn(documents, recipe.lengths, options.seed + number)
        train(model, stream, replace(phase, steps=round(options.share * phase.steps)), torch.device(options.device))
    weights = round_weights(model)

    out.mkdir(parents=True, exist_ok=True)
    write_tokenizer(pieces, out)
    write_json(out / "config.json", recipe.config)
    write_json(out / "generation_config.json", GENERATION_CONFIG)
    write_weights(weights, out, recipe.shards)

    for length in sorted(set(recipe.lengths)):
        found = perplexity(model, held_out, length, options.device)
        print(f"held-out perplexity per token, {length} at a time: {found:.3f}", flush=True)
    baseline = trigram_perplexity(np.concatenate(documents), held_out, VOCAB_SIZE)
    print(f"Kneser-Ney trigram: {baseline:.3f}")


if __name__ == "__main__":
    main()
