"""transformers as a second witness: it agrees with right logits, and finds what both of our own paths misread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.errors import EngineFailed, GoldenMismatch
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import ModelSpec
from quantkit.protocols import ExportOptions
from quantkit.runtimes.reference.session import ReferenceSession
from quantkit.verification.prompts import Prompt
from quantkit.verification.witness import agreement, distance, tolerance
from tests.support.memory import memory_checkpoint, tiny_config

pytest.importorskip("torch")

SCALING = {
    "rope_type": "longrope",
    "short_factor": [1 + 0.1 * i for i in range(8)],
    "long_factor": [1 + 0.4 * i for i in range(8)],
    "original_max_position_embeddings": 16,
}
LLAMA = tiny_config(
    architectures=["LlamaForCausalLM"], model_type="llama", scale_emb=None, scale_depth=None, dim_model_base=None,
    tie_word_embeddings=False, rope_scaling={**SCALING, "attention_factor": 1.0},
)  # fmt: skip
PROMPTS = [
    Prompt(name, "", tuple(np.random.default_rng(length).integers(0, 97, length).tolist()))
    for name, length in (("one", 1), ("short", 12), ("long", 50))
]


def written(config: dict[str, Any], out: Path, **options: str) -> Checkpoint:
    planned = registry.exporter("hf").prepare(memory_checkpoint(config), ExportOptions(**options))
    return registry.open_checkpoint(publish(planned, out).path)


def logits(checkpoint: Checkpoint) -> list[np.ndarray]:
    """By the torch model; the reference computes the same."""
    import torch  # noqa: PLC0415 - heavy

    from quantkit.models.loading import load_model  # noqa: PLC0415 - imports torch

    model, oracle = load_model(checkpoint), ReferenceSession(checkpoint)
    found = [model(torch.tensor([prompt.token_ids]))[0].numpy() for prompt in PROMPTS]
    for prompt, rows in zip(PROMPTS, found, strict=True):
        assert np.abs(oracle.logits(prompt.token_ids) - rows).max() < 1e-4, "both of our paths agree"
    return found


@pytest.mark.engine("transformers")
def test_it_agrees_with_right_logits(tmp_path: Path) -> None:
    checkpoint = written(LLAMA, tmp_path / "m")
    line = agreement(checkpoint, PROMPTS, logits(checkpoint))
    assert line is not None
    assert line.startswith("transformers agrees on 3 prompts, to ")


def rope(**changes: Any) -> Callable[[ModelSpec], ModelSpec]:
    return lambda spec: replace(spec, rope=replace(spec.rope, **changes))


MISREADINGS: dict[str, Callable[[ModelSpec], ModelSpec]] = {
    "attention_factor ignored": rope(attention_factor=(1 + np.log(4) / np.log(16)) ** 0.5),
    "another base": rope(theta=500000.0),
    "short factors for long": lambda spec: rope(long_factor=spec.rope.short_factor)(spec),
    "no LongRoPE": rope(kind="default", short_factor=(), long_factor=()),
    "another border": rope(original_max_position_embeddings=64),
    "another epsilon": lambda spec: replace(spec, rms_norm_eps=1e-6),
    "embeddings times 12": lambda spec: replace(spec, scale_emb=12.0),
    "a residual scale": lambda spec: replace(spec, residual_scale=0.999),
    "a logit divisor": lambda spec: replace(spec, logit_divisor=1.001),
}


@pytest.mark.engine("transformers")
@pytest.mark.parametrize("name", MISREADINGS)
def test_a_misreading_that_both_of_our_paths_share_is_found(name: str, tmp_path: Path) -> None:
    right = written(LLAMA, tmp_path / "m")
    misread = replace(right, spec=MISREADINGS[name](right.spec))
    with pytest.raises(GoldenMismatch, match=r"transformers computes other logits for prompt '(one|short|long)'"):
        agreement(misread, PROMPTS, logits(misread))


@pytest.mark.engine("transformers")
def test_logits_that_are_no_numbers_are_no_agreement(tmp_path: Path) -> None:
    checkpoint = written(LLAMA, tmp_path / "m")
    found = logits(checkpoint)
    found[1] = np.full_like(found[1], np.nan)
    with pytest.raises(GoldenMismatch, match="prompt 'short'"):
        agreement(checkpoint, PROMPTS, found)


def test_it_is_silent_where_it_has_no_class(tmp_path: Path) -> None:
    native = written(tiny_config(), tmp_path / "m")
    assert agreement(native, PROMPTS, []) is None
    assert agreement(memory_checkpoint(LLAMA), PROMPTS, []) is None


@pytest.mark.engine("transformers")
def test_a_folder_that_it_cannot_load_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = written(LLAMA, tmp_path / "m")

    def refused(path: Path) -> None:
        raise EngineFailed(f"{path}: transformers: no such thing")

    monkeypatch.setattr(registry.runtime("transformers"), "open", refused, raising=False)
    assert "no second witness" in (agreement(checkpoint, PROMPTS, []) or "")


@pytest.mark.engine("transformers")
def test_it_agrees_on_the_golden_model_once_folded(golden_model: Path, tmp_path: Path) -> None:
    planned = registry.exporter("hf").prepare(registry.open_checkpoint(golden_model), ExportOptions(arch="llama"))
    checkpoint = registry.open_checkpoint(publish(planned, tmp_path / "m").path)
    assert agreement(checkpoint, PROMPTS, logits(checkpoint)) is not None


def test_the_tolerance_is_a_few_roundings() -> None:
    assert tolerance(2, 16) == pytest.approx(4 * 2**-23)
    rows = np.random.default_rng(0).standard_normal((16, 97)).astype(np.float32)
    assert distance(rows, rows) == 0
    assert distance(rows * np.float32(1 + 1e-5), rows) > tolerance(2, 16)
