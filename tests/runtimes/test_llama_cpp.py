"""llama.cpp against the reference, on files that the independent `gguf` package wrote."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.errors import BadOption, EngineFailed, QuantkitError
from quantkit.models.checkpoint import Checkpoint
from quantkit.runtimes.llama_cpp import RUNTIME, LlamaCppSession
from quantkit.runtimes.reference.runtime import ReferenceSession
from quantkit.verification.metrics import log_softmax, max_abs_log_prob_difference
from tests.support.memory import memory_checkpoint, random_arrays, tiny_config

pytestmark = [
    pytest.mark.engine("llama-cpp"),
    pytest.mark.skipif(RUNTIME.missing() is not None, reason="llama.cpp is not installed"),
]

VOCABULARY = 320
TOKENS = [1, *(int(i) for i in (np.arange(59) * 31 + 7) % VOCABULARY)]
SPECIAL = 319
"""A control token with the text `<|special|>`."""

GGUF_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(path: Path, checkpoint: Checkpoint) -> Path:
    """A float32 GGUF of a MiniCPM with a byte vocabulary, by gguf-py."""
    gguf = pytest.importorskip("gguf", reason="the files are written by the gguf package")
    spec = checkpoint.spec
    writer = gguf.GGUFWriter(path, "minicpm")
    writer.add_context_length(spec.max_position_embeddings)
    writer.add_embedding_length(spec.hidden_size)
    writer.add_block_count(spec.num_hidden_layers)
    writer.add_feed_forward_length(spec.intermediate_size)
    writer.add_head_count(spec.num_attention_heads)
    writer.add_head_count_kv(spec.num_key_value_heads)
    writer.add_rope_dimension_count(spec.head_dim)
    writer.add_rope_freq_base(spec.rope.theta)
    writer.add_layer_norm_rms_eps(spec.rms_norm_eps)
    writer.add_vocab_size(spec.vocab_size)
    writer.add_embedding_scale(spec.scale_emb)
    writer.add_residual_scale(spec.residual_scale)
    writer.add_logit_scale(spec.logit_divisor)
    add_vocabulary(writer, spec.vocab_size)
    if spec.rope.kind == "longrope":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
        writer.add_rope_scaling_orig_ctx_len(spec.rope.original_max_position_embeddings)
        writer.add_rope_scaling_attn_factors(spec.rope.attention_factor)
        writer.add_tensor("rope_factors_short.weight", np.array(spec.rope.short_factor, np.float32))
        writer.add_tensor("rope_factors_long.weight", np.array(spec.rope.long_factor, np.float32))
    heads = {"q_proj": spec.num_attention_heads, "k_proj": spec.num_key_value_heads}
    for name, view in checkpoint.weights.items():
        values: Any = view.read()
        for part, count in heads.items():
            if part in name:  # llama.cpp rotates neighbours, the family halves of a head
                values = values.reshape(count, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(gguf_name(name), np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_name(name: str) -> str:
    ends = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in ends:
        return ends[name]
    _, _, layer, module = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{GGUF_NAMES[module]}.weight"


def add_vocabulary(writer: Any, size: int) -> None:
    control, byte, normal, unknown = 3, 6, 1, 2
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256))]
    kinds = [unknown, control, control, *[byte] * 256]
    tokens += [f"word{i}" for i in range(size - len(tokens) - 1)] + ["<|special|>"]
    kinds += [normal] * (size - len(kinds) - 1) + [control]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([token.encode() for token in tokens])
    writer.add_token_scores([0.0] * size)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return memory_checkpoint(tiny_config(vocab_size=VOCABULARY))


@pytest.fixture(scope="module")
def file(checkpoint, tmp_path_factory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", checkpoint)


@pytest.fixture(scope="module")
def session(file, checkpoint):
    with LlamaCppSession(file, checkpoint.spec) as session:
        yield session


def test_its_log_probs_are_those_of_the_reference(session, checkpoint):
    logits = session.logits(TOKENS)
    assert logits.dtype == np.float32
    assert logits.shape == (len(TOKENS), VOCABULARY)
    # Measured 1e-6 with float32 keys, values and attention; 1e-4 with llama.cpp's own defaults.
    assert max_abs_log_prob_difference(ReferenceSession(checkpoint).logits(TOKENS), logits) < 1e-5


def test_its_rows_are_normalized_log_probs(session):
    np.testing.assert_allclose(np.exp(session.logits(TOKENS[:5]).astype(np.float64)).sum(axis=1), 1, atol=1e-5)


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


def test_a_probability_of_zero_is_minus_infinity(tmp_path):
    config = tiny_config(vocab_size=VOCABULARY)
    arrays = random_arrays(memory_checkpoint(config).spec)
    arrays["model.norm.weight"] = arrays["model.norm.weight"] * np.float32(100)
    sharp = memory_checkpoint(config, arrays)
    with LlamaCppSession(write_gguf(tmp_path / "sharp.gguf", sharp), sharp.spec) as session:
        logits = session.logits([1, 7])
    expected = log_softmax(ReferenceSession(sharp).logits([1, 7]))
    assert np.isneginf(logits[expected < -110]).all()
    assert max_abs_log_prob_difference(expected, logits) < 1e-3


def test_longrope_takes_the_factors_of_the_length_at_hand_not_of_the_context(tmp_path):
    factors = {"short_factor": [1.0] * 8, "long_factor": [1.0 + i for i in range(8)]}
    scaling = {"rope_type": "longrope", "original_max_position_embeddings": 256, **factors}
    config = tiny_config(vocab_size=VOCABULARY, rope_scaling=scaling, max_position_embeddings=1024)
    extended = memory_checkpoint(config)
    reference = ReferenceSession(extended)
    long = [1, *(i % VOCABULARY for i in range(299))]
    with LlamaCppSession(write_gguf(tmp_path / "long.gguf", extended), extended.spec) as session:
        for ids in (long[:100], long, long[:100]):
            expected = reference.logits(ids)[-1:]
            # Float32 angles of up to 300 radians; the wrong factors are off by more than 1e-2.
            assert max_abs_log_prob_difference(expected, session.next_logits(ids)[None]) < 1e-4
    wrong = memory_checkpoint({**config, "rope_scaling": {**scaling, "short_factor": factors["long_factor"]}})
    assert max_abs_log_prob_difference(reference.logits(long[:100]), ReferenceSession(wrong).logits(long[:100])) > 1e-2


def test_a_sequence_longer_than_the_context_starts_a_larger_one(tmp_path):
    config = tiny_config(vocab_size=VOCABULARY, num_hidden_layers=1, max_position_embeddings=8192)
    large = memory_checkpoint(config)
    ids = [i % VOCABULARY for i in range(4100)]
    with LlamaCppSession(write_gguf(tmp_path / "large.gguf", large), large.spec) as session:
        assert session._n_ctx == 4096
        row = session.next_logits(ids)
        assert session._n_ctx == 8192
    # Float32 angles of up to 4100 radians.
    assert max_abs_log_prob_difference(ReferenceSession(large).next_logits(ids)[None], row[None]) < 1e-3


def test_a_sequence_longer_than_the_model_allows_is_refused(session):
    with pytest.raises(EngineFailed, match="64 tokens"):
        session.next_logits([1] * 64)
    assert session.next_logits([1] * 63).shape == (VOCABULARY,)


def test_leaving_the_session_ends_the_engine_and_leaves_nothing_behind(file, checkpoint, capfd):
    with LlamaCppSession(file, checkpoint.spec) as session:
        session.next_logits([1])
        process, folder = session._child._process, Path(session._child._folder.name)
        assert folder.exists()
        assert folder.stat().st_mode & 0o077 == 0
    assert process.returncode is not None
    assert not folder.exists()
    assert capfd.readouterr() == ("", "")


def test_a_file_that_the_engine_refuses_gives_its_reason(file, checkpoint, tmp_path, capfd):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:-50_000])
    with pytest.raises(EngineFailed, match=r"cut\.gguf: llama\.cpp: .*not within the file bounds"):
        LlamaCppSession(cut, checkpoint.spec)
    assert capfd.readouterr() == ("", "")


def test_our_own_reader_stands_before_the_engine(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + b"\xff" * 100)
    with pytest.raises(QuantkitError) as caught:
        RUNTIME.open(path)
    assert not isinstance(caught.value, EngineFailed)


def test_an_engine_that_dies_is_an_error_not_a_crash(file, checkpoint):
    with LlamaCppSession(file, checkpoint.spec) as session:
        os.kill(session._child._process.pid, signal.SIGABRT)
        with pytest.raises(EngineFailed, match=r"llama\.cpp died with SIGABRT"):
            session.logits([1, 2])


@pytest.mark.parametrize("difference", [-1, 1])
def test_another_vocabulary_than_promised_is_noticed(file, difference):
    other = memory_checkpoint(tiny_config(vocab_size=VOCABULARY + difference)).spec
    with LlamaCppSession(file, other) as session, pytest.raises(EngineFailed):
        session.logits([1])


def test_of_a_large_vocabulary_only_the_likely_tokens_are_asked_for(session, monkeypatch):
    monkeypatch.setattr("quantkit.runtimes.llama_cpp.CANDIDATES", 10)
    whole, few = session.logits([1, 7])[-1], session.next_logits([1, 7])
    likely = np.argsort(-whole)[:10]
    np.testing.assert_allclose(few[likely], whole[likely], atol=1e-5)
    assert np.isneginf(np.delete(few, likely)).all()
