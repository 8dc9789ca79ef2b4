"""One trial: a model with a damaged file, and all that a user would do with it in one process."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.mutations.gguf_values import EVERY_TYPE, check_values
from quantkit import QuantizeOptions, inspection, loads_in, open_checkpoint, plan, read_golden
from quantkit.artifacts.manifest import read_manifest
from quantkit.errors import MAX_MESSAGE, QuantkitError
from quantkit.models.checkpoint import Checkpoint
from quantkit.pipeline.recipe import Recipe
from quantkit.tensors.schemes.affine_groups import AffineGroups

MAX_SECONDS = 2.0
MAX_BYTES = 500_000_000
MAX_GGUF_BYTES = 256_000_000
TEXTS = (
    "",
    "Hello, world!",
    "    def f(x):\n\treturn '\u00e9\u65e5\u672c\U0001f600'",
    "<|im_start|>user\nx<|im_end|>",
    "\0\x7f\u2581a\u200d",
)
MESSAGES = (
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "So."},
    {"role": "user", "content": ""},
)
TARGETS = ("hf", "gguf", "compressed-tensors", "gptq", "mlx")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a mutant did.

    seconds: of processor, those of children included, so that others on this machine do not count. grown: bytes of
    resident memory at its peak over those before. fault: a traceback or what else is wrong, None where all is well.
    answer: how it ended.
    """

    number: int
    seconds: float
    grown: int
    fault: str | None
    answer: str


class Trial:
    """Trials of the file `name`; every model that it lies in has a folder of its own in `scratch`."""

    def __init__(self, name: str, scratch: Path) -> None:
        self.name = name
        self.scratch = scratch
        self._folders: dict[int, Path] = {}

    def run(self, number: int, model: Mapping[str, bytes], mutant: bytes, *, renders: bool) -> Outcome:
        """Use `model` with `mutant` in the place of the file. renders: whether chat templates are rendered, too."""
        path = self._laid_out(model) / self.name
        path.write_bytes(mutant)
        before = _reset_peak()
        start = _processor_seconds()
        fault, answers = None, list[str]()
        try:
            self._use(path, answers, renders=renders)
        except BaseException as error:  # a panic of a Rust library is none of Exception
            fault = "".join(traceback.format_exception(error))
        seconds, grown = _processor_seconds() - start, _peak() - before
        if fault is None:
            fault = _limits_broken(seconds, grown, MAX_GGUF_BYTES if path.suffix == ".gguf" else MAX_BYTES)
        return Outcome(number, seconds, grown, fault, "; ".join(answers)[:300] or "accepted")

    def _laid_out(self, model: Mapping[str, bytes]) -> Path:
        folder = self._folders.get(id(model))
        if folder is None:
            folder = self._folders[id(model)] = self.scratch / str(len(self._folders))
            folder.mkdir()
            for name, data in model.items():
                (folder / name).write_bytes(data)
        return folder

    def _use(self, path: Path, answers: list[str], *, renders: bool) -> None:
        recipe = Recipe()
        with _answered(answers):
            if path.name == "golden.bin":
                read_golden(path)
                return
            if path.name == "recipe.toml":
                recipe = Recipe.read(path)
            checkpoint = open_checkpoint(path if path.suffix == ".gguf" else path.parent)
            use_checkpoint(checkpoint, recipe, answers, renders=renders)
            if path.name == EVERY_TYPE:
                check_values(checkpoint)


def use_checkpoint(checkpoint: Checkpoint, recipe: Recipe, answers: list[str], *, renders: bool) -> None:
    """What `inspect`, `plan`, `export`, `golden`, `run` and `verify` ask of a model before any weight is read."""
    facts = inspection(checkpoint).to_json()
    json.dumps({**facts, "notes": list(checkpoint.notes)}, allow_nan=False)
    for note in checkpoint.notes:
        _check_line(note)
    steps: list[Callable[[], object]] = [
        lambda: loads_in(checkpoint),
        lambda: read_manifest(checkpoint.path),
        *(lambda target=target: _planned(checkpoint, target, recipe) for target in TARGETS),
        lambda: _tokenize(checkpoint, renders=renders),
    ]
    for step in steps:
        with _answered(answers):
            step()


def _planned(checkpoint: Checkpoint, target: str, recipe: Recipe) -> None:
    dense = checkpoint.format == "hf"
    options = QuantizeOptions(method="rtn", scheme=AffineGroups(bits=4, group_size=32), recipe=recipe)
    made = plan(checkpoint, [target], options if dense and target not in ("hf", "gguf") else None)
    json.dumps(made.to_json(), allow_nan=False)


def _tokenize(checkpoint: Checkpoint, *, renders: bool) -> None:
    from quantkit.text.tokenizer import open_tokenizer  # noqa: PLC0415 - extras

    tokenizer = open_tokenizer(checkpoint)
    for text in TEXTS:
        tokenizer.decode(tokenizer.encode(text))
    if renders and tokenizer.has_chat_template:
        tokenizer.chat(MESSAGES)


@contextmanager
def _answered(answers: list[str]) -> Any:
    """Take a `QuantkitError` for an answer, if it is one line for a user."""
    try:
        yield
    except QuantkitError as error:
        _check_line(str(error))
        _check_line(error.hint or "")
        answers.append(f"{type(error).__name__}: {error}")


def _check_line(text: str) -> None:
    if len(text) > MAX_MESSAGE or not text.isprintable():
        raise AssertionError(f"not a line of {MAX_MESSAGE} printable characters: {text[:2000]!r}")


def _limits_broken(seconds: float, grown: int, most: int) -> str | None:
    if seconds > MAX_SECONDS:
        return f"took {seconds:.1f} s"
    if grown > most:
        return f"took {grown / 1e6:,.0f} MB"
    return None


def _reset_peak() -> int:
    """Let the kernel forget the peak of this process's resident size; returns the size of now in bytes."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS")


def _processor_seconds() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _peak() -> int:
    return _status("VmHWM")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
