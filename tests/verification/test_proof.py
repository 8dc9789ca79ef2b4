"""Verification: what is right passes, each kind of wrong fails, and the fault is put where it lies."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.errors import BadOption
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.precision import precision_of
from quantkit.protocols import ExportOptions
from quantkit.verification.golden import Golden
from quantkit.verification.prompts import Prompt
from quantkit.verification.proof import verify as verify_with_manifest
from quantkit.verification.recording import recorded
from quantkit.verification.report import Check, Comparison, Report, Step, first_divergence
from quantkit.verification.steps.limits import ENGINE_FACTOR
from tests.support.tiny import tiny_config, tiny_tensors, write_tensors, write_tiny_checkpoint

verify = partial(verify_with_manifest, needs_manifest=False)
"""Many models here were not written by quantkit."""

PROMPTS = (Prompt("short", "", (1, 5, 9)), Prompt("longer", "", tuple(range(1, 40))))


def golden_of(model: Path) -> Golden:
    """What is recorded of `model`."""
    return recorded(registry.open_checkpoint(model), PROMPTS)


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
    summary = "pretends"

    def __init__(
        self, distortion: float, only_prompt: tuple[int, ...] | None = None, arithmetic: str = "bfloat16 inputs"
    ) -> None:
        self.distortion = distortion
        self.only_prompt = only_prompt
        self._arithmetic = arithmetic

    def arithmetic(self, checkpoint: Checkpoint) -> str:
        return self._arithmetic

    def refuses(self, checkpoint: Checkpoint) -> None:
        return None

    def open(self, path: Path):
        session = registry.runtime("reference").open(path)
        noise = np.random.default_rng(0)

        def logits(token_ids: Sequence[int]) -> np.ndarray:
            exact = session.logits(token_ids)
            if self.only_prompt not in (None, token_ids):
                return exact
            return exact + np.float32(self.distortion) * noise.standard_normal(exact.shape)

        return nullcontext(SimpleNamespace(logits=logits))


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Golden:
    return golden_of(write_tiny_checkpoint(tmp_path_factory.mktemp("recorded") / "tiny"))


@pytest.fixture
def golden(recording) -> Golden:
    return recording


@pytest.fixture
def pretend(monkeypatch):
    """Lets `engine="pretend"` choose a given engine."""

    def install(engine: PretendEngine) -> None:
        monkeypatch.setattr("quantkit.verification.engines.choose_engine", lambda *_: engine)
        monkeypatch.setattr("quantkit.verification.proof.engine_name", lambda name, *_: name)

    return install


def test_the_model_itself_is_verified(tiny_checkpoint, golden):
    report = verify(tiny_checkpoint, golden=golden, engine="reference")
    assert report.passed
    assert [check.name for check in report.checks] == ["reference against original"]
    assert report.checks[0].max_abs_log_prob_difference < 1e-4
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
    assert report.failed is not None
    assert report.failed.name == "numbers"
    assert tensor in report.failed.says
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
    report = verify(artifact, golden=golden, engine="reference")
    assert report.failed is not None
    assert report.failed.name == "files"
    assert shard.name in report.failed.says
    assert [step.status for step in report.steps[3:]] == ["skipped", "skipped"]


def test_a_golden_file_of_another_model_fails_at_identity(tmp_path, golden):
    other = write_tiny_checkpoint(tmp_path / "other", vocab=301)
    report = verify(other, golden=golden, engine="reference")
    assert report.failed is not None
    assert (report.failed.name, report.failed.says) == ("identity", "vocab_size is 301, the original's is 300")
    assert report.steps[2].status == "skipped"


def test_with_nothing_to_compare_it_does_not_say_verified(tiny_checkpoint):
    for engine in ("reference", "auto", "none"):  # no engine runs native MiniCPM from a folder
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
    pretend(PretendEngine(1e-3, arithmetic="float32"))
    assert not verify(tiny_checkpoint, golden=golden, engine="pretend").passed


def test_an_engine_may_lose_on_quantized_weights_what_integer_kernels_lose(tiny_checkpoint, golden, pretend, tmp_path):
    artifact = exported(tiny_checkpoint, tmp_path / "out.gguf", "gguf", "q8_0")
    for distortion, passes in ((0.0, True), (1e-3, True), (3e-2, False)):
        pretend(PretendEngine(distortion, arithmetic="int8 inputs"))
        report = verify(artifact, golden=golden, engine="pretend")
        assert (report.checks[1].measure, report.checks[1].passed) == ("kl", passes)
        assert all(comparison.limit < 5e-4 for comparison in report.checks[1].comparisons)


def test_an_engine_that_is_wrong_on_one_prompt_only_fails(tiny_checkpoint, golden, pretend):
    pretend(PretendEngine(0.1, only_prompt=PROMPTS[0].token_ids))
    assert not verify(tiny_checkpoint, golden=golden, engine="pretend").passed


def test_an_engine_that_computes_nan_fails(tiny_checkpoint, golden, pretend):
    pretend(PretendEngine(float("nan"), only_prompt=PROMPTS[0].token_ids))
    report = verify(tiny_checkpoint, golden=golden, engine="pretend")
    assert not report.passed
    json.dumps(report.to_json(), allow_nan=False)


def test_progress_never_goes_back_and_comes_to_its_end(tiny_checkpoint, golden, pretend):
    pretend(PretendEngine(0.0))
    told: list[tuple[str, int, int]] = []
    verify(tiny_checkpoint, golden=golden, engine="pretend", progress=lambda *step: told.append(step))
    counts = [done for _, done, _ in told]
    assert counts == sorted(counts)
    assert {total for _, _, total in told} == {counts[-1]}
    assert any(what.startswith("numbers") for what, _, _ in told)
    assert any("pretend: longer" in what for what, _, _ in told)


def test_only_the_first_prompts_are_asked(tiny_checkpoint, golden):
    report = verify(tiny_checkpoint, golden=golden, engine="reference", prompts=1)
    assert [comparison.prompt for comparison in report.checks[0].comparisons] == ["short"]


def test_the_report_is_plain_json_and_its_last_line_the_verdict(tiny_checkpoint, golden):
    report = verify(tiny_checkpoint, golden=golden, engine="reference")
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert data["passed"] is True
    assert [step["name"] for step in data["steps"]] == ["files", "identity", "numbers", "predictions", "engine"]
    assert data["steps"][3]["checks"][0]["comparisons"][1]["positions"] == 39
    verdict = "files and numbers verified, not run in any engine"
    assert data["verdict"] == verdict
    assert report.lines()[-1] == f"{tiny_checkpoint}: {verdict} (hf, bfloat16)"


def test_a_check_weighs_prompts_by_their_positions():
    prompts = Comparison("x", 1, 0.8, 1.0, 0.3, 0.0, True), Comparison("y", 3, 0.4, 0.0, 0.2, 0.1, False)
    check = Check("a", "kl", 0.5, prompts)
    assert check.kl == pytest.approx(0.5)
    assert check.top1 == pytest.approx(0.25)
    assert check.max_abs_log_prob_difference == 0.3
    assert (check.lost_lead, check.same_next_tokens) == (0.1, 1)
    assert check.passed
    assert not Check("a", "max_abs_log_prob_difference", 0.2, check.comparisons).passed


def test_a_prompt_beyond_its_own_limit_fails_though_the_mean_is_small():
    prompts = Comparison("x", 1, 0.3, 1.0, 0.3, 0.0, True, 0.2), Comparison("y", 99, 1e-9, 1.0, 0.2, 0.1, True, 0.2)
    assert not Check("a", "kl", None, prompts).passed
    assert not Check("a", "kl", None, (replace(prompts[0], kl=float("nan")), prompts[1])).passed


def test_a_report_passes_only_if_no_step_fails_and_names_the_first_that_does():
    facts = {"path": "x", "format": "hf", "precision": "quantized", "engine": "pretend", "compared": "original"}
    good, bad, later = Step("files", "passed", ""), Step("numbers", "failed", "x"), Step("engine", "failed", "y")
    assert Report(**facts, steps=(good,)).verdict == "verified, run in pretend"
    report = Report(**facts, steps=(good, bad, later))
    assert not report.passed
    assert report.verdict == "FAILED at numbers"


def test_a_divergence_is_the_first_stage_beyond_the_limit_and_nothing_else():
    assert first_divergence({"a": 0.0, "b": 0.3, "c": 0.9}, 0.2) == "b"
    assert first_divergence({"a": 0.0, "b": float("nan"), "c": 0.9}, 0.2) == "b"
    assert first_divergence({"a": 0.02, "b": 0.03, "c": 0.09, "d": 0.1}, 0.2) is None


@pytest.mark.parametrize("type", ["f32", "f16", "bf16"])
def test_dense_artifacts_are_held_to_the_limit_of_their_dtype(tiny_checkpoint, golden, tmp_path, type):  # noqa: A002
    precision = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[type]
    artifact = exported(tiny_checkpoint, tmp_path / "out.gguf", "gguf", type)
    report = verify(artifact, golden=golden, engine="reference")
    assert report.precision == precision
    assert report.passed, report.lines()
    assert all(comparison.limit < 1e-4 for comparison in report.checks[0].comparisons)


@pytest.mark.parametrize("type", ["q8_0", "q4_0", "q4_1", "q5_1"])
def test_the_users_own_bound_is_on_top_of_the_limits(tiny_checkpoint, golden, tmp_path, type):  # noqa: A002
    artifact = exported(tiny_checkpoint, tmp_path / "out.gguf", "gguf", type)
    checkpoint = registry.open_checkpoint(artifact)
    assert precision_of(checkpoint) == "quantized"
    report = verify(artifact, golden=golden, engine="reference")
    assert report.passed, report.lines()
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
    assert report.verdict == "verified, run in llama-cpp"
    names = ["reference against original", "llama-cpp against reference", "llama-cpp against original"]
    assert [check.name for check in report.checks] == names
    between = report.checks[1]
    if type == "f32":
        assert between.max_abs_log_prob_difference < 1e-4
        assert between.top1 == 1
    else:
        # The limit is four times what rounding to int8 costs; less than half of that cost would mean that the engine
        # did not use its kernels for quantized weights, and that the limit is too generous.
        longer = between.comparisons[1]
        rounding = longer.limit / ENGINE_FACTOR
        assert 0.5 * rounding < longer.kl < 1.5 * rounding


@needs_llama_cpp
@pytest.mark.engine("llama-cpp")
def test_without_an_original_only_the_agreement_of_the_engines_is_claimed(with_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("quantkit.verification.steps.sequence.prompts_for", lambda *_: (PROMPTS, None))
    artifact = exported(with_tokenizer, tmp_path / "out.gguf", "gguf", "f16")
    report = verify(artifact)
    assert report.passed
    assert [check.name for check in report.checks] == ["llama-cpp against reference"]
    assert any("neither golden logits nor the original" in note for note in report.notes)


def test_the_original_is_asked_its_own_prompts_when_nothing_was_recorded(with_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("quantkit.verification.prompts.LONG_TOKENS", 20)
    artifact = exported(with_tokenizer, tmp_path / "out.gguf", "gguf", "bf16")
    report = verify(artifact, against=with_tokenizer, engine="reference")
    assert report.passed, report.lines()
    prompts = {comparison.prompt: comparison.positions for comparison in report.checks[0].comparisons}
    assert list(prompts) == ["code", "english", "chinese", "chat", "one token", "long"]
    assert prompts["one token"] == 1
    assert prompts["long"] == 20
