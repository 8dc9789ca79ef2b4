"""mlx-lm against the reference: rows, stages, the cache, and LongRoPE by its own rule."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit import open_checkpoint, plan, registry
from quantkit.errors import BadOption, EngineFailed
from quantkit.models.checkpoint import Checkpoint
from quantkit.protocols import ExportOptions, TracingSession
from quantkit.runtimes.mlx.session import MLXSession
from quantkit.tensors.schemes.affine_groups import AffineGroups
from tests.support.memory import memory_checkpoint, tiny_config
from tests.support.mlx_folders import exported
from tests.support.quantized_models import linears, quantized_model

pytestmark = pytest.mark.engine("mlx")

UNTIED = tiny_config(
    vocab_size=320, hidden_size=128, intermediate_size=256, tie_word_embeddings=False, max_position_embeddings=512
)
GRID = AffineGroups(bits=4, group_size=64, symmetric=False)
ENGINES = ("mlx", "mlx-numpy")


@pytest.fixture(scope="module", params=["native", "llama"])
def folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = quantized_model(UNTIED, linears(GRID))
    return exported(model, tmp_path_factory.mktemp("mlx") / "model", ExportOptions(arch=request.param))


@pytest.fixture(scope="module")
def session(folder: Path) -> Iterator[MLXSession]:
    with registry.runtime("mlx").open(folder) as opened:
        assert isinstance(opened, MLXSession)
        yield opened


def random_ids(count: int, seed: int = 0) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, 320, count)]


def rows_of(engine: str, folder: Path, ids: Sequence[int]) -> np.ndarray:
    with registry.runtime(engine).open(folder) as opened:
        return opened.logits(ids)


def log_probabilities(rows: np.ndarray) -> np.ndarray:
    wide = rows.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    logarithms: np.ndarray = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return logarithms


def apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(log_probabilities(one) - log_probabilities(other)).max())


def test_every_stage_is_the_references(folder: Path, session: MLXSession) -> None:
    ids = random_ids(20)
    assert isinstance(session, TracingSession)
    with registry.runtime("reference").open(folder) as oracle:
        wanted = oracle.trace(ids)  # type: ignore[attr-defined]
    with registry.runtime("mlx-numpy").open(folder) as numpy_session:
        others = numpy_session.trace(ids)  # type: ignore[attr-defined]
    found = session.trace(ids)
    assert list(found) == list(wanted) == list(others)
    for name, values in wanted.items():
        size = np.abs(values).max()
        np.testing.assert_allclose(found[name], values, rtol=0, atol=3e-5 * size, err_msg=name)
        np.testing.assert_allclose(others[name], values, rtol=0, atol=3e-5 * size, err_msg=name)
    assert np.array_equal(found["logits"], session.logits(ids)), "watching it changes it"


def test_token_by_token_is_the_prompt_at_once(folder: Path, session: MLXSession) -> None:
    ids = random_ids(300)
    at_once = session.logits(ids)
    assert apart(at_once, rows_of("reference", folder, ids)) < 1e-3
    steps = np.array([session.next_logits(ids[: count + 1]) for count in range(len(ids))])
    assert apart(steps, at_once) < 1e-3
    with registry.runtime("mlx-numpy").open(folder) as numpy_session:
        steps = np.array([numpy_session.next_logits(ids[: count + 1]) for count in range(0, len(ids), 7)])
    assert apart(steps, at_once[::7]) < 1e-3


def test_the_cache_goes_back_where_texts_part(session: MLXSession) -> None:
    one, other = random_ids(40), [*random_ids(25), *random_ids(10, seed=1)]
    for ids in (one, other, other[:30], other[:30], one):
        assert apart(session.next_logits(ids)[None], session.logits(ids)[-1:]) < 1e-4


def test_ids_that_there_are_not_are_refused(session: MLXSession) -> None:
    for ids in ([], [320], [-1], [1] * 513):
        with pytest.raises(BadOption):
            session.logits(ids)


def longrope(short: float, long: float) -> Checkpoint:
    pairs = 16
    scaling = {
        "rope_type": "longrope", "original_max_position_embeddings": 64,
        "short_factor": [short] * pairs, "long_factor": [long] * pairs,
    }  # fmt: skip
    return memory_checkpoint({**UNTIED, "max_position_embeddings": 256, "rope_scaling": scaling})


def test_longrope_takes_the_long_factors_at_every_length_and_plan_says_so(tmp_path: Path) -> None:
    """Beyond the original length that is the model's rule; up to it, it is a model whose two lists are the long one.

    Engine and its numpy twin have one rule, at once and token by token across the border.
    """
    folder = exported(longrope(1.0, 4.0), tmp_path / "model")
    like_it = exported(longrope(4.0, 4.0), tmp_path / "long alone")
    ids = random_ids(100)
    for engine in ENGINES:
        with registry.runtime(engine).open(folder) as opened:
            beyond, within = opened.logits(ids), opened.logits(ids[:40])
            steps = np.array([opened.next_logits(ids[: count + 1]) for count in range(len(ids))])
        assert apart(beyond, rows_of("reference", folder, ids)) < 1e-3
        assert apart(steps, beyond) < 1e-3
        assert apart(within, rows_of("reference", like_it, ids[:40])) < 1e-3
        assert apart(within, rows_of("reference", folder, ids[:40])) > 0.05
    (target,) = plan(longrope(1.0, 4.0), ["mlx"]).targets
    assert target.arch == "llama"
    assert any("texts of up to 64 tokens differ" in (verdict.remark or "") for verdict in target.kernels)
    (target,) = plan(longrope(4.0, 4.0), ["mlx"]).targets
    assert [verdict.remark for verdict in target.kernels] == [None]


def test_dynamic_ntk_is_the_models_within_its_context_and_plan_says_so(tmp_path: Path) -> None:
    model = memory_checkpoint({**UNTIED, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}})
    folder, ids = exported(model, tmp_path / "model"), random_ids(60)
    for engine in ENGINES:
        assert apart(rows_of(engine, folder, ids), rows_of("reference", folder, ids)) < 1e-3
    (target,) = plan(model, ["mlx"]).targets
    assert any("beyond 512 tokens" in (verdict.remark or "") for verdict in target.kernels)


MISREAD: dict[str, tuple[dict[str, Any], str]] = {
    "theta inside": (
        {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "rope_theta",
    ),
    "kind inside": (
        {"rope_scaling": None, "rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISREAD)
def test_a_config_that_mlx_lm_takes_for_another_one_is_refused(case: str, tmp_path: Path) -> None:
    """As newer transformers write them: what stands elsewhere, or nowhere, it replaces by its own defaults."""
    llama = {**UNTIED, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    folder = exported(memory_checkpoint(llama), tmp_path / "model")
    changes, words = MISREAD[case]
    config = {**json.loads((folder / "config.json").read_text()), **changes}
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    for engine in ENGINES:
        assert words in (registry.runtime(engine).refuses(open_checkpoint(folder)) or "")
        with pytest.raises(EngineFailed, match=words):
            registry.runtime(engine).open(folder)


def test_what_mlx_lm_does_not_follow_is_refused_before_it_starts(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "longrope", "original_max_position_embeddings": 64, "attention_factor": 1.5,
        "short_factor": [1.0] * 16, "long_factor": [1.0] * 16,
    }  # fmt: skip
    llama = {**UNTIED, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "rope_scaling": scaling}
    folder = exported(memory_checkpoint(llama), tmp_path / "model")
    for engine in ENGINES:
        assert "attention factor" in (registry.runtime(engine).refuses(open_checkpoint(folder)) or "")
        with pytest.raises(EngineFailed, match="attention factor"):
            registry.runtime(engine).open(folder)
