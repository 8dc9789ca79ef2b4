"""transformers' own Llama class against the reference; models that it cannot run are refused, not guessed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.errors import BadOption, EngineFailed, UnsupportedModel
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import NORM_ROLES, Role
from quantkit.protocols import ExportOptions
from quantkit.runtimes.reference.session import ReferenceSession
from quantkit.runtimes.transformers import RUNTIME, TransformersSession, _refuse_strays
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView, TensorView, Weight
from quantkit.verification.engines import runs
from quantkit.verification.metrics import max_abs_log_prob_difference
from tests.support.quantized_models import quantized_model
from tests.support.runs import quantized
from tests.support.tiny import write_tiny_checkpoint

pytestmark = [
    pytest.mark.engine("transformers"),
    pytest.mark.skipif(RUNTIME.missing() is not None, reason="transformers or torch is not installed"),
]

TOKENS = list(range(1, 30))
SPEC = AffineGroups(bits=4, group_size=64)


@pytest.fixture(scope="module")
def folded(tmp_path_factory) -> Path:
    """A float32 `--arch llama` export of a tiny model whose LongRoPE factors change at 16 tokens."""
    folder = tmp_path_factory.mktemp("transformers")
    factors = [1.0 + i / 4 for i in range(32)]
    scaling = {
        "rope_type": "longrope",
        "short_factor": [1.0] * 32,
        "long_factor": factors,
        "original_max_position_embeddings": 16,
    }
    source = write_tiny_checkpoint(folder / "source", config_overrides={"rope_scaling": scaling})
    checkpoint = registry.open_checkpoint(source)
    planned = registry.exporter("hf").prepare(checkpoint, ExportOptions(type="f32", arch="llama"))
    return publish(planned, folder / "folded").path


def copied(folder: Path, copy: Path, **changes: object) -> Path:
    """A copy with changes to its config.json."""
    shutil.copytree(folder, copy)
    config = json.loads((folder / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **changes}))
    return copy


def test_its_logits_are_those_of_the_reference(folded, capfd):
    reference = ReferenceSession(registry.open_checkpoint(folded))
    with RUNTIME.open(folded) as session:
        for ids in (TOKENS[:1], TOKENS[:16], TOKENS):
            logits = session.logits(ids)
            assert logits.dtype == np.float32
            assert logits.shape == (len(ids), 300)
            assert max_abs_log_prob_difference(reference.logits(ids), logits) < 1e-4
    assert capfd.readouterr() == ("", "")


def test_the_next_logits_do_not_depend_on_what_was_asked_before(folded):
    with RUNTIME.open(folded) as session:
        for ids in (*(TOKENS[:n] for n in range(12, 20)), TOKENS[:5], TOKENS[:5], [*TOKENS[:4], 200, 3], [7]):
            np.testing.assert_allclose(session.next_logits(ids), session.logits(ids)[-1], atol=1e-4)


def test_a_native_model_is_refused_with_the_way_out(tmp_path):
    native = write_tiny_checkpoint(tmp_path / "native")
    with pytest.raises(EngineFailed, match="no class for a native MiniCPM") as caught:
        RUNTIME.open(native)
    assert "--arch llama" in str(caught.value.hint)


def test_a_llama_that_would_run_as_something_else_is_refused(folded, tmp_path):
    """transformers chooses the class by model_type, engines of others by architectures."""
    posing = copied(folded, tmp_path / "posing", model_type="mistral")
    with pytest.raises(UnsupportedModel, match="model_type 'mistral' contradicts architectures"):
        RUNTIME.open(posing)


def test_remote_code_is_not_run(folded, tmp_path):
    evil = copied(folded, tmp_path / "evil", auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    (evil / "modeling_evil.py").write_text("raise SystemExit('remote code ran')")
    with RUNTIME.open(evil) as session:
        assert isinstance(session, TransformersSession)


def test_tokens_that_do_not_exist_are_refused(folded):
    with RUNTIME.open(folded) as session:
        for ids in ([], [300], [-1]):
            with pytest.raises(BadOption):
                session.logits(ids)


def published(checkpoint: Checkpoint, path: Path) -> Path:
    return publish(registry.exporter("compressed-tensors").prepare(checkpoint, ExportOptions()), path).path


def rounded(checkpoint: Checkpoint) -> Checkpoint:
    """The model whose quantized weights are float16 numbers: what the package dequantizes to, when told to do so."""

    def view(name: str, weight: Weight) -> Weight:
        if not isinstance(weight, QuantizedView):
            return weight
        values = weight.read().dequantized().astype(np.float16)
        return TensorView(name, values.dtype, values.shape, lambda start, stop: values[start:stop])

    return replace(checkpoint, weights={name: view(name, weight) for name, weight in checkpoint.weights.items()})


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
def test_a_quantized_folder_runs_as_the_reference_reads_it(folded, tmp_path, capfd, symmetric):
    pytest.importorskip("compressed_tensors", reason="transformers loads such folders with compressed-tensors")
    run = quantized(registry.open_checkpoint(folded), AffineGroups(bits=4, group_size=64, symmetric=symmetric), "rtn")
    folder = published(run.checkpoint, tmp_path / "int4")
    with RUNTIME.open(folder) as session:
        logits = session.logits(TOKENS)
    checkpoint = registry.open_checkpoint(folder)
    expected = ReferenceSession(checkpoint if symmetric else rounded(checkpoint)).logits(TOKENS)
    assert max_abs_log_prob_difference(expected, logits) < 1e-4
    assert capfd.readouterr() == ("", "")


def test_a_quantized_embedding_runs(folded, tmp_path):
    pytest.importorskip("compressed_tensors", reason="transformers loads such folders with compressed-tensors")
    source = registry.open_checkpoint(folded)
    model = quantized_model(source.config, lambda slot: None if slot.role in NORM_ROLES else SPEC)
    folder = published(model, tmp_path / "int4")
    with RUNTIME.open(folder) as session:
        logits = session.logits(TOKENS)
    expected = ReferenceSession(rounded(registry.open_checkpoint(folder))).logits(TOKENS)
    assert max_abs_log_prob_difference(expected, logits) < 1e-4


def test_several_grids_with_zero_points_are_refused_and_not_chosen(folded, tmp_path):
    pytest.importorskip("compressed_tensors", reason="transformers loads such folders with compressed-tensors")
    free = AffineGroups(bits=4, group_size=64, symmetric=False)
    source = registry.open_checkpoint(folded)
    for name, other in {"one": free, "two": SPEC}.items():
        model = quantized_model(
            source.config, lambda slot, other=other: {Role.Q: free, Role.DOWN: other}.get(slot.role)
        )
        folder = published(model, tmp_path / name)
        assert runs(RUNTIME, registry.open_checkpoint(folder)) == (name == "one")
    with pytest.raises(EngineFailed, match="single grid only"):
        RUNTIME.open(folder)


def test_a_tensor_that_is_not_there_is_not_made_up(tmp_path):
    with pytest.raises(EngineFailed, match=r"finds 1 missing tensors, first 'model\.norm\.weight'"):
        _refuse_strays(tmp_path, {"missing_keys": {"model.norm.weight"}, "mismatched_keys": set()})
