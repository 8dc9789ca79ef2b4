"""transformers' own Llama class against the reference; models that it cannot run are refused, not guessed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from quantkit import registry
from quantkit.artifact import publish
from quantkit.errors import BadOption, EngineFailed
from quantkit.metrics import max_abs_log_prob_difference
from quantkit.protocols import ExportOptions
from quantkit.runtimes.reference import ReferenceSession
from quantkit.runtimes.transformers import RUNTIME, TransformersSession
from tests.tiny import write_tiny_checkpoint

pytestmark = [
    pytest.mark.engine("transformers"),
    pytest.mark.skipif(RUNTIME.missing() is not None, reason="transformers or torch is not installed"),
]

TOKENS = list(range(1, 30))


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


def test_a_native_model_is_refused_with_the_way_out(tiny_checkpoint):
    with pytest.raises(EngineFailed, match="no model class for 'minicpm'") as caught:
        RUNTIME.open(tiny_checkpoint)
    assert "--arch llama" in str(caught.value.hint)


def test_a_minicpm_that_calls_itself_llama_is_not_run_as_one(tmp_path):
    posing = write_tiny_checkpoint(tmp_path / "posing", config_overrides={"model_type": "llama", "auto_map": None})
    with pytest.raises(EngineFailed, match="would run MiniCPMForCausalLM as LlamaForCausalLM"):
        RUNTIME.open(posing)


def test_remote_code_is_not_run(folded, tmp_path):
    config = json.loads((folded / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_evil.Evil"}
    copy = tmp_path / "evil"
    copy.mkdir()
    for file in folded.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "modeling_evil.py").write_text("raise SystemExit('remote code ran')")
    with RUNTIME.open(copy) as session:
        assert isinstance(session, TransformersSession)


def test_tokens_that_do_not_exist_are_refused(folded):
    with RUNTIME.open(folded) as session:
        for ids in ([], [300], [-1]):
            with pytest.raises(BadOption):
                session.logits(ids)
