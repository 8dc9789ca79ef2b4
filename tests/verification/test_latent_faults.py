"""One thing wrong in an artifact with latent attention: found, by its name where it is a number of the config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import quantkit
from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.models.checkpoint import Checkpoint
from quantkit.protocols import ExportOptions
from tests.support.latent_definition import SMALL, latent_arrays, write_latent
from tests.support.memory import memory_checkpoint
from tests.support.wrong_models import Change, swapped_heads, with_weights


@pytest.fixture(scope="module")
def proved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model in a folder, and what its golden file records."""
    root = tmp_path_factory.mktemp("latent")
    source = write_latent(root / "m", SMALL, arrays=latent_arrays(SMALL, seed=1))
    golden = root / "golden.bin"
    quantkit.record_golden(source, golden)
    return source, golden


def scaled(by: float, start: int = 0, stop: int | None = None) -> Change:
    def change(w: np.ndarray) -> np.ndarray:
        w = w.copy()
        w[start:stop] *= by
        return w

    return change


BLOCK = "model.layers.1.self_attn."
WRONG_WEIGHTS: dict[str, dict[str, Change]] = {
    "the latent of keys and values scaled": {f"{BLOCK}kv_a_layernorm.weight": scaled(1.1)},
    "the latent of queries scaled before its norm": {f"{BLOCK}q_a_proj.weight": scaled(1.1)},
    "rotated keys scaled": {f"{BLOCK}kv_a_proj_with_mqa.weight": scaled(1.1, 64)},
    "heads of queries swapped": {f"{BLOCK}q_b_proj.weight": swapped_heads(64)},
    "parts of keys and values swapped": {f"{BLOCK}kv_b_proj.weight": swapped_heads(32)},
    "latent and rotated keys swapped": {f"{BLOCK}kv_a_proj_with_mqa.weight": lambda w: np.roll(w, 32, axis=0)},
}


@pytest.mark.parametrize("container", ["hf", "gguf"])
@pytest.mark.parametrize("fault", WRONG_WEIGHTS)
def test_a_wrong_weight_is_found(fault: str, container: str, proved: tuple[Path, Path], tmp_path: Path) -> None:
    source, golden = proved
    wrong = with_weights(registry.open_checkpoint(source), WRONG_WEIGHTS[fault])
    out = written(wrong, container, tmp_path)
    report = quantkit.verify(out, golden=golden, engine="none")
    assert [step.name for step in report.steps if step.status == "failed"] == ["numbers"]


WRONG_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "another epsilon": ({"rms_norm_eps": 1e-6}, "rms_norm_eps"),
    "parts of a head": ({"qk_nope_head_dim": 40, "qk_rope_head_dim": 24, "v_head_dim": 24}, "latent.qk_nope_head_dim"),
    "theta": ({"rope_theta": 5e4}, "rope.theta"),
}


@pytest.mark.parametrize("fault", WRONG_CONFIGS)
@pytest.mark.parametrize("container", ["hf", "gguf"])
def test_a_wrong_config_is_found_by_its_name(
    fault: str, container: str, proved: tuple[Path, Path], tmp_path: Path
) -> None:
    _, golden = proved
    changes, field = WRONG_CONFIGS[fault]
    config = {**SMALL, **changes}
    wrong = memory_checkpoint(config, latent_arrays(config, seed=1))
    report = quantkit.verify(written(wrong, container, tmp_path), golden=golden, engine="none")
    (step,) = [step for step in report.steps if step.name == "identity"]
    assert step.status == "failed"
    assert any(field in line for line in (step.says, *step.problems))


def written(model: Checkpoint, container: str, tmp_path: Path) -> Path:
    out = tmp_path / ("m.gguf" if container == "gguf" else "out")
    return publish(registry.exporter(container).prepare(model, ExportOptions(type="f32")), out).path


def test_the_golden_file_holds_latents_and_an_honest_artifact_passes(proved: tuple[Path, Path], tmp_path: Path) -> None:
    source, golden = proved
    model = registry.open_checkpoint(source)
    assert b'"kv_lora_rank"' in golden.read_bytes()
    for container in ("hf", "gguf"):
        out = written(model, container, tmp_path)
        report = quantkit.verify(out, golden=golden, engine="reference")
        assert report.passed, json.dumps(report.to_json(), indent=1)
