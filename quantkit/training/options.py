"""What a user may choose about a training; the defaults stand here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quantkit.errors import BadOption

DISTILLATION, DECOUPLED, JOINT, QAT = "distillation", "decoupled", "joint", "qat"
OBJECTIVES = (DISTILLATION, DECOUPLED, JOINT, QAT)
LEARNED, DERIVED = "learned", "derived"
SCALES = (LEARNED, DERIVED)
FROZEN, NORMS, EVERYTHING = "frozen", "norms", "all"
DENSE = (FROZEN, NORMS, EVERYTHING)
MAX_STEPS, MAX_LENGTH, MAX_BATCH, MAX_SEED = 1 << 32, 1 << 24, 1 << 24, (1 << 63) - 1
MAX_RATE = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions:
    """How a quantized model is trained.

    files: texts, .txt, .jsonl or .parquet.
    steps: of training the whole model; reconstruction comes on top.
    length: tokens of a sequence, what every text begins with (BOS) included.
    batch: sequences of a step.
    micro_batch: sequences that go through the model at a time; a step adds up the gradients of batch / micro_batch
        such pieces, spread over processes and threads. It decides memory, and the last bits of the result.
    objective: "distillation" = the teacher's predictions; "decoupled" = cross-entropy on the text first, then the
        teacher's predictions (BitCPM); "joint" = half of each throughout; "qat" = cross-entropy alone. Cross-entropy
        teaches the model the text; the teacher alone keeps it what it was.
    qat: share of the steps that the first stage of "decoupled" takes.
    reconstruction: steps on every block, as a share of `steps`: blocks are first fitted one by one to what they put out
        in full precision. As many of these as the model has blocks cost about as much as one step.
    scales: "learned" = parameters of their own, beginning with those of the quantized model; "derived" = of the latent
        weights, s = mean|W| of a group as BitCPM has it (ternary), or what covers the group; the latent weights then
        begin with the original's.
    learning_rate: of latent weights, for "learned" in steps of their grid, for "derived" in units of the mean magnitude
        of a matrix. scale_rate: of scales, relative. Both are that of up to four levels, and less with more.
        dense_rate: of unquantized weights, in units of the root mean square of a tensor.
    dense: which unquantized weights are trained: "frozen" = none, "norms" = those of the blocks, "all".
    warmup: share of every stage in which the learning rate grows to its full height; the rest is half a cosine.
    seed: of the order of the text.
    held_out: sequences that are kept out of training, to measure on; fewer where the text is short.
    save_every: steps between two states that a killed training can go on from.
    """

    files: tuple[Path, ...]
    steps: int
    length: int = 512
    batch: int = 4
    micro_batch: int = 1
    objective: str = DISTILLATION
    qat: float = 0.3
    reconstruction: float = 0.1
    scales: str = LEARNED
    learning_rate: float = 0.005
    scale_rate: float = 0.001
    dense_rate: float = 0.001
    dense: str = NORMS
    warmup: float = 0.1
    seed: int = 0
    held_out: int = 16
    save_every: int = 100

    def __post_init__(self) -> None:
        for name, count, low, high in (
            ("steps", self.steps, 1, MAX_STEPS),
            ("length", self.length, 2, MAX_LENGTH),
            ("batch", self.batch, 1, MAX_BATCH),
            ("micro_batch", self.micro_batch, 1, MAX_BATCH),
            ("seed", self.seed, 0, MAX_SEED),
            ("held_out", self.held_out, 0, MAX_BATCH),
            ("save_every", self.save_every, 1, MAX_STEPS),
        ):
            if not low <= count <= high:
                raise BadOption(f"training {name} must be from {low:,} to {high:,}, is {count:,}")
        for name, value, most in (
            ("qat", self.qat, 1.0),
            ("reconstruction", self.reconstruction, 10.0),
            ("warmup", self.warmup, 1.0),
            ("learning_rate", self.learning_rate, MAX_RATE),
            ("scale_rate", self.scale_rate, MAX_RATE),
            ("dense_rate", self.dense_rate, MAX_RATE),
        ):
            if not 0 <= value <= most:
                raise BadOption(f"training {name} must be from 0 to {most:g}, is {value:g}")
        for name, word, choices in (
            ("objective", self.objective, OBJECTIVES),
            ("scales", self.scales, SCALES),
            ("dense", self.dense, DENSE),
        ):
            if word not in choices:
                raise BadOption(f"training {name} must be one of {', '.join(choices)}, is {word!r}")
        if self.batch % self.micro_batch:
            raise BadOption(
                f"a batch of {self.batch:,} sequences is not a multiple of the micro-batch of {self.micro_batch:,}"
            )
        if not self.files:
            raise BadOption("there is no text to train on", hint="name a file: --text FILE")

    @property
    def reconstruction_steps(self) -> int:
        """Steps on every block."""
        return round(self.reconstruction * self.steps)
