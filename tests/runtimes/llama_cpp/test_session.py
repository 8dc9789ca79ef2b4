"""What the C API alone does: every stage, whole contexts, long sequences in parts."""

from __future__ import annotations

import numpy as np
import pytest

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.errors import EngineFailed
from quantkit.protocols import ExportOptions, TracingSession
from quantkit.runtimes.llama_cpp import session as session_module
from quantkit.runtimes.llama_cpp.session import LlamaCppSession
from quantkit.runtimes.reference.session import ReferenceSession
from quantkit.verification.metrics import max_abs_log_prob_difference
from tests.support.gguf_writer import TOKENS, VOCABULARY, write_gguf
from tests.support.memory import memory_checkpoint, random_arrays, tiny_config

pytestmark = pytest.mark.engine("llama-cpp")
ENGINE = "import quantkit.runtimes.llama_cpp.engine as engine"


@pytest.mark.parametrize("arch", ["native", "llama"])
def test_its_stages_are_the_references(golden_model, tmp_path, arch):
    """Of the trained model, whose residual stream grows to 1e2; a stage at another scale is off by its own size."""
    path = tmp_path / "f32.gguf"
    checkpoint = registry.open_checkpoint(golden_model)
    publish(registry.exporter("gguf").prepare(checkpoint, ExportOptions(type="f32", arch=arch)), path)
    tokens = [1, *((np.arange(119) * 31 + 7) % 2000)]
    with registry.runtime("llama-cpp").open(path) as session:
        assert isinstance(session, TracingSession)
        found, logits = session.trace(tokens), session.logits(tokens)
    expected = registry.runtime("reference").open(path).trace(tokens)
    assert list(found) == list(expected)
    for name, stage in expected.items():
        assert found[name].dtype == np.float32
        assert found[name].shape == stage.shape
        # Measured up to 9e-6 of the largest value, in the final norm.
        np.testing.assert_allclose(found[name], stage, rtol=0, atol=3e-5 * np.abs(stage).max(), err_msg=name)
    np.testing.assert_array_equal(found["logits"], logits)


def test_it_fills_the_models_whole_context(native):
    assert native.next_logits([1] * 64).shape == (VOCABULARY,)


def test_a_long_sequence_is_evaluated_in_parts(file, checkpoint, monkeypatch):
    """Rows and stages of the parts join to those of the whole."""
    parts = f"{ENGINE}; engine.MOST_ROWS = 7; engine.main()"
    with LlamaCppSession(file, checkpoint.spec) as session:
        whole, stages, last = session.logits(TOKENS), session.trace(TOKENS), session.next_logits(TOKENS)
    monkeypatch.setattr(session_module, "SERVE", parts)
    with LlamaCppSession(file, checkpoint.spec) as session:
        np.testing.assert_allclose(session.logits(TOKENS), whole, atol=1e-5)
        np.testing.assert_allclose(session.next_logits(TOKENS), last, atol=1e-5)
        for name, stage in session.trace(TOKENS).items():
            np.testing.assert_allclose(stage, stages[name], atol=1e-4, err_msg=name)


def test_a_sequence_longer_than_the_context_has_a_larger_one(tmp_path):
    config = tiny_config(vocab_size=VOCABULARY, num_hidden_layers=1, max_position_embeddings=8192)
    large = memory_checkpoint(config)
    ids = [i % VOCABULARY for i in range(2100)]
    reference = ReferenceSession(large)
    with LlamaCppSession(write_gguf(tmp_path / "large.gguf", large), large.spec) as session:
        for length in (10, 2100, 1024, 1025):
            # Float32 angles of up to 2100 radians.
            expected = reference.next_logits(ids[:length])[None]
            assert max_abs_log_prob_difference(expected, session.next_logits(ids[:length])[None]) < 1e-3


def test_an_extension_evaluates_only_what_is_new(file, checkpoint, monkeypatch):
    """The child counts the tokens that it decodes, and says so in the place of an error."""
    counting = (
        f"{ENGINE}; seen = []; real = engine.decode\n"
        "def count(library, context, part, *, every_row):\n"
        "    seen.extend(part)\n"
        "    if part == [9, 9]: raise RuntimeError(f'{len(seen)} tokens')\n"
        "    return real(library, context, part, every_row=every_row)\n"
        "engine.decode = count; engine.main()"
    )
    monkeypatch.setattr(session_module, "SERVE", counting)
    with LlamaCppSession(file, checkpoint.spec) as session:
        session.logits(TOKENS[:20])
        for length in (21, 22, 23, 22):
            session.next_logits(TOKENS[:length])
        with pytest.raises(EngineFailed, match="26 tokens"):
            session.next_logits([*TOKENS[:21], 9, 9])


def test_a_graph_without_a_stage_is_said_and_not_guessed(file, checkpoint, monkeypatch):
    renamed = f"{ENGINE}; engine.EMBEDDING = 'another'; engine.main()"
    monkeypatch.setattr(session_module, "SERVE", renamed)
    with LlamaCppSession(file, checkpoint.spec) as session:
        with pytest.raises(EngineFailed, match="no node 'another'"):
            session.trace(TOKENS)
        assert session.logits(TOKENS).shape == (len(TOKENS), VOCABULARY)


def test_logits_that_are_not_numbers_are_refused_and_a_trace_shows_where_they_began(tmp_path):
    config = tiny_config(vocab_size=VOCABULARY)
    arrays = random_arrays(memory_checkpoint(config).spec)
    arrays["model.layers.1.input_layernorm.weight"] *= np.float32(np.nan)
    broken = memory_checkpoint(config, arrays)
    with LlamaCppSession(write_gguf(tmp_path / "broken.gguf", broken), broken.spec) as session:
        for call in (session.logits, session.next_logits):
            with pytest.raises(EngineFailed, match=r"broken\.gguf: llama\.cpp computed logits that are not numbers"):
                call(TOKENS)
        stages = session.trace(TOKENS)
    assert next(name for name, values in stages.items() if np.isnan(values).any()) == "block 1"
