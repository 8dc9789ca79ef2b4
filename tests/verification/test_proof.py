"""Verification: what is right passes, each kind of wrong fails, and the fault is put where it lies."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.errors import BadOption, GoldenMismatch, VerificationFailed
from quantkit.protocols import ExportOptions
from quantkit.verification.golden import Golden, model_facts
from quantkit.verification.prompts import Prompt
from quantkit.verification.proof import ENGINE_FACTOR, MAX_KL, first_divergence, precision_of, verify
from quantkit.verification.report import Check, Comparison, Report
from tests.support.tiny import tiny_config, tiny_tensors, write_tensors, write_tiny_checkpoint

PROMPTS = (Prompt("short", "", (1, 5, 9)), Prompt("longer", "", tuple(range(1, 40))))


def golden_of(model: Path) -> Golden:
    """What the reference runtime predicts for `model`, as if it had been recorded."""
    checkpoint = registry.open_checkpoint(model)
    with registry.runtime("reference").open(model) as session:
        logits = tuple(session.logits(prompt.token_ids) for prompt in PROMPTS)
    return Golden(model_facts(checkpoint.spec), (), PROMPTS, logits)


def with_changed_tensors(model: Path, folder: Path, changes: Mapping[str, np.ndarray]) -> Path:
    """A copy of the random tiny checkpoint with some tensors replaced."""
    shutil.copytree(model, folder)
    for shard in folder.glob("*.safetensors*"):
        shard.unlink()
    write_tensors(folder, {**tiny_tensors(tiny_config()), **changes})
    return folder


def exported(model: Path, out: Path, format: str, type: str | None = None, arch: str = "native") -> Path:  # noqa: A002
    checkpoint = registry.open_checkpoint(model)
    planned = registry.exporter(format).prepare(checkpoint, ExportOptions(type=type, arch=arch))
    return publish(planned, out, inputs=checkpoint.inputs).path


class PretendEngine:
    """An engine that computes with the reference, and then tells something else."""

    name = "pretend"

    def __init__(self, distortion: float, only_prompt: tuple[int, ...] | None = None) -> None:
        self.distortion = distortion
        self.only_prompt = only_prompt

    def open(self, path: Path):
        session = registry.runtime("reference").open(path)
        noise = np.random.default_rng(0)

        def logits(token_ids: Sequence[int]) -> np.ndarray:
            exact = session.logits(token_ids)
            if self.only_prompt not in (None, token_ids):
                return exact
            return exact + np.float32(self.distortion) * noise.standard_normal(exact.shape)

        return nullcontext(SimpleNamespace(logits=logits))


@pytest.fixture
def golden(tiny_checkpoint) -> Golden:
    return golden_of(tiny_checkpoint)


@pytest.fixture
def pretend(monkeypatch):
    """Lets `engine="pretend"` choose a given engine."""

    def install(engine: PretendEngine) -> None:
        monkeypatch.setattr("quantkit.verification.proof.choose_engine", lambda *_: engine)

    return install


def test_the_model_itself_is_verified(tiny_checkpoint, golden):
    report = verify(tiny_checkpoint, golden=golden, engine="reference")
    assert report.passed
    assert [check.name for check in report.checks] == ["reference against original"]
    assert report.checks[0].max_abs_log_prob_difference == 0
    assert (report.format, report.precision, report.engine) == ("hf", "bfloat16", None)


def test_the_original_can_stand_in_for_a_golden_file(tiny_checkpoint, tmp_path):
    copy = with_changed_tensors(tiny_checkpoint, tmp_path / "copy", {})
    golden = golden_of(tiny_checkpoint)
    report = verify(copy, golden=golden, against=tiny_checkpoint, engine="reference")
    assert report.passed
    assert report.divergence is None


@pytest.mark.parametrize(
    ("tensor", "stage"),
    [
        ("model.embed_tokens.weight", "embedding"),
        ("model.layers.0.self_attn.q_proj.weight", "block 0"),
        ("model.layers.1.mlp.down_proj.weight", "block 1"),
        ("model.norm.weight", "final norm"),
    ],
)
def test_a_wrong_tensor_fails_and_its_stage_is_named(tiny_checkpoint, golden, tmp_path, tensor, stage):
    values = tiny_tensors(tiny_config())[tensor]
    wrong = with_changed_tensors(tiny_checkpoint, tmp_path / "wrong", {tensor: np.roll(values, 1, axis=0)})
    report = verify(wrong, golden=golden, against=tiny_checkpoint, engine="reference")
    assert not report.passed
    assert report.divergence is not None
    assert report.divergence.stage == stage
    assert next(iter(report.divergence.relative_errors)) == "embedding"
    assert any(stage in line for line in report.lines())


def test_a_damaged_file_fails_before_anything_runs(tiny_checkpoint, golden, tmp_path):
    artifact = exported(tiny_checkpoint, tmp_path / "out", "hf")
    assert verify(artifact, golden=golden, engine="reference").passed
    shard = next(artifact.glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(VerificationFailed, match=shard.name):
        verify(artifact, golden=golden, engine="reference")


def test_a_golden_file_of_another_model_is_refused(tmp_path, golden):
    other = write_tiny_checkpoint(tmp_path / "other", vocab=301)
    with pytest.raises(GoldenMismatch, match="vocab_size"):
        verify(other, golden=golden, engine="reference")


def test_an_original_of_another_shape_is_refused(tiny_checkpoint, golden, tmp_path):
    other = write_tiny_checkpoint(tmp_path / "other", layers=3)
    with pytest.raises(GoldenMismatch, match=r"num_hidden_layers is 2, that of .* is 3"):
        verify(tiny_checkpoint, golden=golden, against=other, engine="reference")


def test_with_nothing_to_compare_it_does_not_say_verified(tiny_checkpoint):
    for engine in ("reference", "auto"):  # no engine runs native MiniCPM from a folder
        with pytest.raises(BadOption, match="nothing to compare with"):
            verify(tiny_checkpoint, engine=engine)


def test_an_engine_that_computes_something_else_fails_though_the_artifact_is_right(tiny_checkpoint, golden, pretend):
    pretend(PretendEngine(0.1))
    report = verify(tiny_checkpoint, golden=golden, engine="pretend")
    assert [(check.name, check.passed) for check in report.checks] == [
        ("reference against original", True),
        ("pretend against reference", False),
        ("pretend against original", False),
    ]
    assert not report.passed
    pretend(PretendEngine(1e-3))
    assert verify(tiny_checkpoint, golden=golden, engine="pretend").passed


def test_an_engine_may_lose_on_quantized_weights_what_integer_kernels_lose(tiny_checkpoint, golden, pretend, tmp_path):
    artifact = exported(tiny_checkpoint, tmp_path / "out.gguf", "gguf", "q8_0")
    for distortion, passes in ((0.0, True), (1e-3, True), (3e-2, False)):
        pretend(PretendEngine(distortion))
        report = verify(artifact, golden=golden, engine="pretend")
        assert (report.checks[1].measure, report.checks[1].passed) == ("kl", passes)
        assert report.checks[1].limit < MAX_KL / 100
        assert report.checks[2].passed  # the comparison with the original alone would not see it


def test_an_engine_that_is_wrong_on_one_prompt_only_fails(tiny_checkpoint, golden, pretend):
    pretend(PretendEngine(0.1, only_prompt=PROMPTS[0].token_ids))
    assert not verify(tiny_checkpoint, golden=golden, engine="pretend").passed


def test_an_engine_that_computes_nan_fails(tiny_checkpoint, golden, pretend):
    pretend(PretendEngine(float("nan"), only_prompt=PROMPTS[0].token_ids))
    report = verify(tiny_checkpoint, golden=golden, engine="pretend")
    assert not report.passed
    json.dumps(report.to_json(), allow_nan=False)


def test_progress_counts_every_prompt_of_every_engine(tiny_checkpoint, golden, pretend):
    pretend(PretendEngine(0.0))
    told: list[tuple[str, int, int]] = []
    verify(tiny_checkpoint, golden=golden, engine="pretend", progress=lambda *step: told.append(step))
    assert told == [
        ("reference: short", 0, 4),
        ("reference: longer", 1, 4),
        ("pretend: short", 2, 4),
        ("pretend: longer", 3, 4),
    ]


def test_the_report_is_plain_json_and_its_last_line_the_verdict(tiny_checkpoint, golden):
    report = verify(tiny_checkpoint, golden=golden, engine="reference")
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert data["passed"] is True
    assert data["checks"][0]["comparisons"][1]["positions"] == 39
    assert data["checks"][0]["limit"] == 1e-4
    assert report.lines()[-1] == f"{tiny_checkpoint}: verified (hf, bfloat16)"


def test_a_check_weighs_prompts_by_their_positions():
    prompts = Comparison("x", 1, 0.8, 1.0, 0.3, 0.0, True), Comparison("y", 3, 0.4, 0.0, 0.2, 0.1, False)
    check = Check("a", "kl", 0.5, prompts)
    assert check.kl == pytest.approx(0.5)
    assert check.top1 == pytest.approx(0.25)
    assert check.max_abs_log_prob_difference == 0.3
    assert (check.lost_lead, check.same_next_tokens) == (0.1, 1)
    assert check.passed
    assert not Check("a", "max_abs_log_prob_difference", 0.2, check.comparisons).passed


def test_a_report_passes_only_if_every_check_does():
    good = Check("good", "kl", 1.0, (Comparison("x", 1, 0.1, 1.0, 0.1, 0.0, True),))
    bad = Check("bad", "kl", 0.01, good.comparisons)
    facts = {"path": "x", "format": "hf", "precision": "quantized", "engine": None}
    assert Report(**facts, checks=(good,)).passed
    assert not Report(**facts, checks=(good, bad)).passed


def test_the_first_divergence_is_the_first_beyond_the_limit_else_the_largest_step():
    assert first_divergence({"a": 0.0, "b": 0.3, "c": 0.9}, 0.2) == "b"
    assert first_divergence({"a": 0.0, "b": float("nan"), "c": 0.9}, 0.2) == "b"
    assert first_divergence({"a": 0.02, "b": 0.03, "c": 0.09, "d": 0.1}, 0.2) == "c"


@pytest.mark.parametrize("type", ["f32", "f16", "bf16"])
def test_dense_artifacts_are_held_to_the_limit_of_their_dtype(tiny_checkpoint, golden, tmp_path, type):  # noqa: A002
    precision = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[type]
    artifact = exported(tiny_checkpoint, tmp_path / "out.gguf", "gguf", type)
    report = verify(artifact, golden=golden, engine="reference")
    assert report.precision == precision
    assert report.checks[0].measure == ("max_abs_log_prob_difference" if type == "f32" else "kl")
    assert report.passed


@pytest.mark.parametrize("type", ["q8_0", "q4_0", "q4_1", "q5_1"])
def test_quantized_artifacts_are_held_to_a_divergence(tiny_checkpoint, golden, tmp_path, type):  # noqa: A002
    artifact = exported(tiny_checkpoint, tmp_path / "out.gguf", "gguf", type)
    checkpoint = registry.open_checkpoint(artifact)
    assert precision_of(checkpoint) == "quantized"
    report = verify(artifact, golden=golden, engine="reference")
    assert (report.checks[0].measure, report.checks[0].limit) == ("kl", MAX_KL)
    assert not verify(artifact, golden=golden, engine="reference", max_kl=report.checks[0].kl / 2).passed
    assert verify(artifact, golden=golden, engine="reference", max_kl=report.checks[0].kl * 2).passed


@pytest.fixture(scope="module")
def with_tokenizer(tmp_path_factory, golden_model) -> Path:
    """A random tiny model with the golden model's tokenizer, which llama.cpp needs to load a file at all."""
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("verify") / "model", vocab=2048)
    for name in ("tokenizer.model", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(golden_model / name, folder)
    return folder


needs_llama_cpp = pytest.mark.skipif(
    registry.runtime("llama-cpp").missing() is not None, reason="llama.cpp is not installed"
)


@needs_llama_cpp
@pytest.mark.engine("llama-cpp")
@pytest.mark.parametrize(("type", "arch"), [("f32", "native"), ("f32", "llama"), ("q4_0", "native")])
def test_auto_proves_a_gguf_file_in_llama_cpp(with_tokenizer, tmp_path, type, arch):  # noqa: A002
    artifact = exported(with_tokenizer, tmp_path / "out.gguf", "gguf", type, arch)
    report = verify(artifact, golden=golden_of(with_tokenizer))
    assert report.passed, report.lines()
    assert report.engine == "llama-cpp"
    names = ["reference against original", "llama-cpp against reference", "llama-cpp against original"]
    assert [check.name for check in report.checks] == names
    between = report.checks[1]
    if type == "f32":
        assert between.max_abs_log_prob_difference < 1e-4
        assert between.top1 == 1
    else:
        # The limit is twice what rounding to int8 costs; less than half of that cost would mean that the engine did not
        # use its kernels for quantized weights, and that the limit is too generous.
        rounding = between.limit / ENGINE_FACTOR
        assert 0.5 * rounding < between.kl < 1.5 * rounding


@needs_llama_cpp
@pytest.mark.engine("llama-cpp")
def test_without_an_original_only_the_agreement_of_the_engines_is_claimed(with_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("quantkit.verification.proof.default_prompts", lambda *_, **__: PROMPTS)
    artifact = exported(with_tokenizer, tmp_path / "out.gguf", "gguf", "f16")
    report = verify(artifact)
    assert report.passed
    assert [check.name for check in report.checks] == ["llama-cpp against reference"]
    assert any("neither golden logits nor the original" in note for note in report.notes)


def test_the_original_is_asked_its_own_prompts_when_nothing_was_recorded(with_tokenizer, monkeypatch):
    monkeypatch.setattr("quantkit.verification.prompts.LONG_TOKENS", 20)
    report = verify(with_tokenizer, against=with_tokenizer, engine="reference")
    assert report.passed
    prompts = {comparison.prompt: comparison.positions for comparison in report.checks[0].comparisons}
    assert list(prompts) == ["code", "english", "chinese", "chat", "one token", "long"]
    assert prompts["one token"] == 1
    assert prompts["long"] == 20
