"""What the C API and the server must both do, against the reference, on files that the package `gguf` wrote."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

from quantkit.errors import BadOption, EngineFailed
from quantkit.runtimes.llama_cpp.server_session import ServerSession
from quantkit.runtimes.llama_cpp.session import LlamaCppSession
from quantkit.runtimes.reference.session import ReferenceSession
from quantkit.verification.metrics import log_softmax, max_abs_log_prob_difference
from tests.support.gguf_writer import SPECIAL, TOKENS, VOCABULARY, write_gguf
from tests.support.memory import memory_checkpoint, random_arrays, tiny_config

pytestmark = pytest.mark.engine("llama-cpp")
SESSIONS = [LlamaCppSession, ServerSession]


def test_its_log_probs_are_those_of_the_reference(session, checkpoint):
    logits = session.logits(TOKENS)
    assert logits.dtype == np.float32
    assert logits.shape == (len(TOKENS), VOCABULARY)
    # Measured 1e-6 with float32 keys, values and attention; 1e-4 with llama.cpp's own defaults.
    assert max_abs_log_prob_difference(ReferenceSession(checkpoint).logits(TOKENS), logits) < 1e-5


def test_both_roads_lead_to_the_same_rows(native, server):
    assert max_abs_log_prob_difference(native.logits(TOKENS), server.logits(TOKENS)) < 1e-5


def test_the_next_logits_do_not_depend_on_what_was_asked_before(session):
    rows = session.logits(TOKENS[:20])
    for ids in (TOKENS[:20], TOKENS[:3], [*TOKENS[:7], 300], TOKENS[:12], [5], TOKENS[:4]):
        expected = rows[len(ids) - 1] if ids == TOKENS[: len(ids)] else session.logits(ids)[-1]
        np.testing.assert_allclose(session.next_logits(ids), expected, atol=1e-5)


def test_the_tokenizer_inside_the_file_is_the_one_that_answers(session):
    def byte_ids(text: str) -> list[int]:
        return [3 + value for value in text.encode()]

    assert session.tokenize("hé\n", add_special=False, parse_special=False) == byte_ids("hé\n")
    assert session.tokenize("a", add_special=True, parse_special=False) == [1, *byte_ids("a")]
    assert session.tokenize("<|special|>", add_special=False, parse_special=True) == [SPECIAL]
    assert session.tokenize("<|special|>", add_special=False, parse_special=False) == byte_ids("<|special|>")


@pytest.mark.parametrize(("token_ids", "error"), [([], BadOption), ([VOCABULARY], EngineFailed), ([-1], EngineFailed)])
def test_tokens_that_do_not_exist_are_refused_in_one_line(session, token_ids, error):
    for call in (session.logits, session.next_logits):
        with pytest.raises(error) as caught:
            call(token_ids)
        assert len(str(caught.value).splitlines()) == 1
    assert session.next_logits([1]).shape == (VOCABULARY,)


def test_a_sequence_longer_than_the_model_allows_is_refused(session):
    with pytest.raises(BadOption, match="65 tokens"):
        session.next_logits([1] * 65)
    assert session.next_logits([1] * 63).shape == (VOCABULARY,)


@pytest.mark.parametrize("kind", SESSIONS)
def test_a_probability_of_next_to_nothing_is_no_number_that_is_not_one(kind, tmp_path):
    config = tiny_config(vocab_size=VOCABULARY)
    arrays = random_arrays(memory_checkpoint(config).spec)
    arrays["model.norm.weight"] = arrays["model.norm.weight"] * np.float32(100)
    sharp = memory_checkpoint(config, arrays)
    with kind(write_gguf(tmp_path / "sharp.gguf", sharp), sharp.spec) as session:
        logits = session.logits([1, 7])
    expected = log_softmax(ReferenceSession(sharp).logits([1, 7]))
    assert (log_softmax(logits)[expected < -110] < -80).all()
    assert max_abs_log_prob_difference(expected, logits) < 1e-3


@pytest.mark.parametrize("kind", SESSIONS)
@pytest.mark.parametrize("original", [256, 300])
def test_longrope_takes_the_factors_of_the_length_at_hand_not_of_the_context(kind, original, tmp_path):
    factors = {"short_factor": [1.0] * 8, "long_factor": [1.0 + i for i in range(8)]}
    scaling = {"rope_type": "longrope", "original_max_position_embeddings": original, **factors}
    config = tiny_config(vocab_size=VOCABULARY, rope_scaling=scaling, max_position_embeddings=1024)
    extended = memory_checkpoint(config)
    reference = ReferenceSession(extended)
    long = [1, *(i % VOCABULARY for i in range(349))]
    with kind(write_gguf(tmp_path / "long.gguf", extended), extended.spec) as session:
        for ids in (long[:100], long, long[:100], long[:255]):
            expected = reference.logits(ids)[-1:]
            # Float32 angles of up to 350 radians; the wrong factors are off by more than 1e-2.
            assert max_abs_log_prob_difference(expected, session.next_logits(ids)[None]) < 1e-4
        if original == 300:  # a context of 280 tokens has 512 in truth, and their factors
            with pytest.raises(EngineFailed, match="short factors"):
                session.next_logits(long[:280])
    wrong = memory_checkpoint({**config, "rope_scaling": {**scaling, "short_factor": factors["long_factor"]}})
    assert max_abs_log_prob_difference(reference.logits(long[:100]), ReferenceSession(wrong).logits(long[:100])) > 1e-2


@pytest.mark.parametrize("kind", SESSIONS)
def test_a_file_that_the_engine_refuses_gives_its_reason(kind, file, checkpoint, tmp_path, capfd):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:-50_000])
    with pytest.raises(EngineFailed, match=r"cut\.gguf: llama\.cpp: .*not within the file bounds") as caught:
        kind(cut, checkpoint.spec)
    assert len(str(caught.value).splitlines()) == 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", SESSIONS)
def test_an_engine_that_dies_is_an_error_not_a_crash(kind, file, checkpoint):
    with kind(file, checkpoint.spec) as session:
        os.kill(session._child._process.pid, signal.SIGABRT)
        os.waitid(os.P_PID, session._child._process.pid, os.WEXITED | os.WNOWAIT)  # it may answer before it is gone
        with pytest.raises(EngineFailed, match=r"llama\.cpp died with SIGABRT"):
            session.logits([1, 2])


@pytest.mark.parametrize("kind", SESSIONS)
@pytest.mark.parametrize("difference", [-1, 1])
def test_another_vocabulary_than_promised_is_noticed(kind, file, difference):
    other = memory_checkpoint(tiny_config(vocab_size=VOCABULARY + difference)).spec
    with pytest.raises(EngineFailed), kind(file, other) as session:
        session.logits([1])


@pytest.mark.parametrize("kind", SESSIONS)
def test_leaving_the_session_ends_the_engine_in_silence(kind, file, checkpoint, capfd):
    with kind(file, checkpoint.spec) as session:
        session.next_logits([1])
        process = session._child._process
    assert process.returncode is not None
    assert capfd.readouterr() == ("", "")
