"""Trainings of a tiny model, in memory: the same ones every time.

python -m tests.support.trainings FOLDER SAVES     train beside FOLDER/out, and die after so many saved states
torchrun -m tests.support.trainings FOLDER         train in several processes; the first one writes the result
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.artifacts.journal import Journal
from quantkit.artifacts.output_paths import Destination
from quantkit.calibration.compute import Compute
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import LINEAR_ROLES
from quantkit.tensors.rounding import round_to_nearest
from quantkit.tensors.scheme import Scheme
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.training.options import TrainingOptions
from quantkit.training.processes import ALONE, Processes, joined_processes
from quantkit.training.sequences import TrainingText
from quantkit.training.trained_model import Trained, train
from tests.support.memory import memory_checkpoint, random_arrays, tiny_config
from tests.support.quantized_models import BF16

TERNARY = AffineGroups(bits=2, group_size=-1, ternary=True, scale_dtype="bfloat16")
OPTIONS = TrainingOptions(
    files=(Path("text.txt"),),
    steps=12,
    length=24,
    batch=4,
    objective="decoupled",
    learning_rate=0.01,
    scale_rate=0.003,
    dense_rate=0.003,
    reconstruction=0.25,
    held_out=4,
    save_every=2,
)
ONE_THREAD = Compute(bfloat16=False)
KEY = b"key"


def original(seed: int = 0) -> Checkpoint:
    """A random bfloat16 model of two blocks."""
    config = tiny_config(num_hidden_layers=2)
    return memory_checkpoint(config, random_arrays(memory_checkpoint(config).spec, seed=seed, dtype=BF16))


def rounded(model: Checkpoint, scheme: Scheme = TERNARY) -> Checkpoint:
    """`model` with all linear layers rounded to the nearest."""
    linear = {slot.name for slot in model.spec.slots() if slot.role in LINEAR_ROLES}
    arrays: dict[str, Any] = {}
    for name, weight in model.weights.items():
        values = weight.read()
        arrays[name] = round_to_nearest(values.astype(np.float32), scheme) if name in linear else values
    return memory_checkpoint(model.config, arrays)


def random_text(model: Checkpoint, options: TrainingOptions = OPTIONS, rows: int = 96) -> TrainingText:
    """Rows of random tokens."""
    tokens = np.random.default_rng(3).integers(0, model.spec.vocab_size, (rows, options.length), np.int32)
    return TrainingText(tokens, options.held_out, options.seed, ())


def smoothed(model: Checkpoint) -> Checkpoint:
    """`model` computing the same, with norms of half their size before matrices of twice theirs."""
    weights = {name: (weight.read(), weight.read().dtype) for name, weight in model.weights.items()}
    factors = {"layernorm": 0.5, "q_proj": 2, "k_proj": 2, "v_proj": 2, "gate_proj": 2, "up_proj": 2}
    arrays = {
        name: values * np.array(next((x for part, x in factors.items() if part in name), 1), dtype)
        for name, (values, dtype) in weights.items()
    }
    return memory_checkpoint(model.config, arrays)


def trained(
    *,
    scheme: Scheme = TERNARY,
    teacher: Checkpoint | None = None,
    compute: Compute = ONE_THREAD,
    processes: Processes = ALONE,
    journal: Journal | None = None,
    **changes: Any,
) -> Trained:
    """What becomes of the tiny model by `OPTIONS` with `changes`."""
    model, options = original(), replace(OPTIONS, **changes)
    # As in a recovery: the first process alone knows what the weights were smoothed by.
    begun = smoothed(model) if processes.is_first else model
    return train(
        model,
        rounded(begun, scheme),
        random_text(model, options),
        options,
        smoothed=begun,
        teacher=teacher,
        compute=compute,
        processes=processes,
        journal=journal,
    )


def journal_in(folder: Path, key: bytes = KEY) -> Journal:
    """A journal beside `folder`/out."""
    return Journal(Destination(folder / "out", folder / "out", True), key)


def digests(result: Trained) -> dict[str, str]:
    """Of every trained weight."""
    numbers = {name: tensor.numbers_digest() for name, tensor in result.tensors.items()}
    return {**numbers, **{name: array.tobytes().hex() for name, array in result.dense.items()}}


class _Dying(Journal):
    """Kills its process when it has saved `saves` states."""

    saves = 0

    def save(self, name: str, parts: Sequence[bytes | memoryview]) -> None:
        super().save(name, parts)
        self.saves -= 1
        if self.saves == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def main(folder: Path, saves: int | None) -> None:
    """See the module's docstring."""
    if saves is not None:
        journal = _Dying(Destination(folder / "out", folder / "out", True), KEY)
        journal.saves = saves
        with journal:
            trained(journal=journal)
        return
    with joined_processes("cpu") as processes:
        found = trained(processes=processes)
        if processes.is_first:
            result = {"curve": found.report["curve"], "measured": found.report["measured"]}
            (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
