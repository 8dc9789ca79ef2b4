"""mlx-lm as it is, offline, on the folder alone: it loads, continues ids as the reference does, and treats text so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from quantkit import open_checkpoint, read_golden, registry
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import Role
from quantkit.protocols import ExportOptions, Session
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.text.tokenizer import open_tokenizer
from tests.support.memory import memory_checkpoint, tiny_config
from tests.support.mlx_folders import exported
from tests.support.quantized_models import linears, quantized_model
from tests.support.runs import quantized

pytestmark = pytest.mark.engine("mlx")

STOCK = """
import json, socket, sys
def refuse(*given, **named): raise OSError("no network here")
socket.socket.connect = socket.getaddrinfo = refuse
import mlx.core as mx
from mlx_lm import load
from mlx_lm.generate import generate, generate_step

def continued(model, ids, count):
    return [int(token) for token, _ in generate_step(mx.array(ids), model, max_tokens=count)]

def answer(asked):
    model, tokenizer = load(asked["folder"])
    if asked["dtype"]:
        model.set_dtype(getattr(mx, asked["dtype"]))
    found = {
        "steps": [continued(model, ids, asked["count"]) for ids in asked["prompts"]],
        "class": type(model).__module__.split(".")[-1],
    }
    if asked["text"] is None:
        return found
    messages = [{"role": "user", "content": asked["text"]}]
    chat = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return found | {
        "text": generate(model, tokenizer, prompt=asked["prompts"][0], max_tokens=8),
        "plain": tokenizer.encode(asked["text"]),
        "chat": tokenizer.encode(chat, add_special_tokens=False),  # as mlx_lm.generate does it
        "ends": sorted(tokenizer.eos_token_ids),
    }

print(json.dumps([answer(asked) for asked in json.loads(sys.argv[1])]))
"""
TEXT = "def f(x):\n    return  x  # it's 3 o'clock"
GOLDEN_INT4 = (
    AffineGroups(bits=4, group_size=128),
    AffineGroups(bits=4, group_size=128, symmetric=False),
    AffineGroups(bits=4, group_size=32),
)


def stock(asked: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a process with mlx-lm and without a network answers."""
    done = subprocess.run(
        [sys.executable, "-c", STOCK, json.dumps(asked)],
        capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def check_continuation(oracle: Session, prompt: Sequence[int], found: Sequence[int], near: float) -> None:
    """`found` are the reference's most likely tokens one after the other; it may part from them at a near-tie alone."""
    ids = [*map(int, prompt), *found]
    rows = oracle.logits(ids)[len(prompt) - 1 : -1]
    leads = rows.max(axis=1) - rows[range(len(found)), found]
    assert leads.max() <= near, f"token {leads.argmax()} of the continuation lies {leads.max():.3g} below the first"


def test_stock_mlx_lm_continues_as_the_reference(golden_model: Path, tmp_path: Path) -> None:
    """64 greedy tokens from ids, in the folders' own dtypes: at most a near-tie goes otherwise."""
    model, golden = open_checkpoint(golden_model), read_golden(golden_model.parent / "golden.bin").prompts
    prompts = [list(map(int, prompt.token_ids)) for prompt in golden if 20 < len(prompt.token_ids) < 100]
    folders = [
        exported(quantized(model, grid, "rtn").checkpoint, tmp_path / str(number))
        for number, grid in enumerate(GOLDEN_INT4)
    ]
    asked = {"prompts": prompts, "count": 64, "text": TEXT, "dtype": None}
    for folder, answer in zip(folders, stock([{**asked, "folder": str(path)} for path in folders]), strict=True):
        assert answer["class"] == "llama"
        with registry.runtime("reference").open(folder) as oracle:
            for prompt, found in zip(prompts, answer["steps"], strict=True):
                assert len(found) == 64
                check_continuation(oracle, prompt, found, near=0.05)
        check_text(open_checkpoint(folder), answer)


def check_text(folder: Checkpoint, answer: dict[str, Any]) -> None:
    """Plain text begins with the first token, as it should; a chat does not, which the plan says."""
    tokenizer = open_tokenizer(folder)
    assert answer["text"].strip()
    assert answer["plain"] == tokenizer.encode(TEXT)
    ours = tokenizer.encode(tokenizer.chat([{"role": "user", "content": TEXT}]))
    assert ours[0] == folder.spec.bos_token_id
    assert answer["chat"] == ours[1:]
    assert answer["ends"] == sorted(folder.spec.eos_token_ids)


def test_the_plan_says_that_chats_begin_otherwise_there(golden_model: Path) -> None:
    planned = registry.exporter("mlx").prepare(open_checkpoint(golden_model), ExportOptions())
    assert any("no beginning-of-sequence token" in note for note in planned.notes)


UNTIED = tiny_config(vocab_size=320, hidden_size=128, intermediate_size=256, tie_word_embeddings=False)
EVERYTHING = AffineGroups(bits=8, group_size=64)
MODELS: dict[str, tuple[Callable[[], Checkpoint], str]] = {
    "a native MiniCPM": (lambda: quantized_model(UNTIED, linears(AffineGroups(bits=4, group_size=64))), "minicpm"),
    "dense": (lambda: memory_checkpoint(UNTIED), "minicpm"),
    "a tied embedding in 8 bits": (
        lambda: quantized_model(
            {**UNTIED, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": True},
            lambda slot: EVERYTHING if len(slot.shape) == 2 else None,
        ),
        "llama",
    ),
    "layers of several widths": (
        lambda: quantized_model(
            UNTIED, lambda slot: {Role.DOWN: EVERYTHING, Role.Q: AffineGroups(bits=3, group_size=32)}.get(slot.role)
        ),
        "minicpm",
    ),
    "a tied MiniCPM": (lambda: memory_checkpoint({**UNTIED, "tie_word_embeddings": True}), "llama"),
}


def test_stock_mlx_lm_loads_models_of_every_kind(golden_model: Path, tmp_path: Path) -> None:
    """As they are where it follows them, else folded; random weights, so float32."""
    folders = [exported(make(), tmp_path / str(number)) for number, (make, _) in enumerate(MODELS.values())]
    for folder, path in product(folders, golden_model.glob("*token*")):
        (folder / path.name).write_bytes(path.read_bytes())
    prompts = [[1, 300, 45, 190, 7, 7, 230, 88], [5], [119, 3, 250]]
    asked = {"prompts": prompts, "count": 8, "text": None, "dtype": "float32"}
    answers = stock([{**asked, "folder": str(folder)} for folder in folders])
    assert {name: answer["class"] for name, answer in zip(MODELS, answers, strict=True)} == {
        name: kind for name, (_, kind) in MODELS.items()
    }
    for folder, answer in zip(folders, answers, strict=True):
        with registry.runtime("reference").open(folder) as oracle:
            for prompt, found in zip(prompts, answer["steps"], strict=True):
                check_continuation(oracle, prompt, found, near=1e-4)
