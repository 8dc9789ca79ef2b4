"""What numpy, onnxruntime and onnxruntime-genai must all do, on graphs that the package `onnx` alone made."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

pytest.importorskip("onnx")
from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.errors import BadOption, EngineFailed, QuantkitError
from quantkit.protocols import ExportOptions
from quantkit.runtimes import _cached_decoder, _onnx_session
from quantkit.runtimes.onnx_numpy import session as numpy_session
from quantkit.runtimes.onnx_numpy.session import OnnxNumpySession
from quantkit.runtimes.onnxruntime.session import OnnxruntimeSession
from quantkit.runtimes.onnxruntime_genai.session import OnnxruntimeGenaiSession
from quantkit.runtimes.reference.runtime import ReferenceSession
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.verification.metrics import max_abs_log_prob_difference
from tests.support.memory import tiny_config
from tests.support.onnx_graphs import decoder_model, write_folder, write_model
from tests.support.processes import descendants, eventually_gone
from tests.support.quantized_models import linears, quantized_model

VOCABULARY = 320
TOKENS = [1, *(int(i) for i in (np.arange(40) * 31 + 7) % VOCABULARY)]
ENGINES = [
    pytest.param(OnnxNumpySession, id="numpy"),
    pytest.param(OnnxruntimeSession, marks=pytest.mark.engine("onnxruntime"), id="onnxruntime"),
    pytest.param(OnnxruntimeGenaiSession, marks=pytest.mark.engine("onnxruntime-genai"), id="genai"),
]
TRACING = ENGINES[:2]
IN_CHILDREN = ENGINES[1:]


@pytest.fixture(scope="module")
def checkpoint():
    return quantized_model(tiny_config(vocab_size=VOCABULARY), linears(AffineGroups(bits=4, group_size=32)))


@pytest.fixture(scope="module")
def rows(checkpoint):
    return ReferenceSession(checkpoint).logits(TOKENS)


@pytest.fixture(scope="module", params=[True, False], ids=["contrib", "standard"])
def folder(request, checkpoint, tmp_path_factory):
    return write_folder(checkpoint, tmp_path_factory.mktemp("onnx") / "model", contrib=request.param)


@pytest.fixture(scope="module", params=ENGINES)
def session(request, folder, checkpoint):
    with request.param(folder, checkpoint.spec) as opened:
        yield opened


def test_its_log_probs_are_those_of_the_reference(session, rows):
    logits = session.logits(TOKENS)
    assert logits.dtype == np.float32
    assert logits.shape == (len(TOKENS), VOCABULARY)
    assert max_abs_log_prob_difference(rows, logits) < 5e-6  # measured 5e-7
    assert np.array_equal(logits, session.logits(TOKENS))


def test_the_next_logits_do_not_depend_on_what_was_asked_before(session, rows):
    for length in (20, 3, 41, 12, 13, 14, 1, 2, 40):
        np.testing.assert_allclose(session.next_logits(TOKENS[:length]), rows[length - 1], atol=2e-5)
        session.logits(TOKENS[:5])
    other = session.logits([*TOKENS[:7], 300, 5])
    session.next_logits(TOKENS[:12])
    np.testing.assert_allclose(session.next_logits([*TOKENS[:7], 300, 5]), other[-1], atol=2e-5)


@pytest.mark.parametrize("ids", [[], [VOCABULARY], [-1], [1] * 65])
def test_tokens_that_do_not_exist_or_are_too_many_are_refused(session, ids):
    for call in (session.logits, session.next_logits):
        with pytest.raises(BadOption) as caught:
            call(ids)
        assert len(str(caught.value).splitlines()) == 1
    assert session.next_logits([1] * 64).shape == (VOCABULARY,)


@pytest.mark.parametrize("kind", TRACING)
@pytest.mark.parametrize("contrib", [True, False])
def test_every_stage_is_the_references(kind, contrib, checkpoint, tmp_path):
    expected = ReferenceSession(checkpoint).trace(TOKENS)
    with kind(write_folder(checkpoint, tmp_path / "m", contrib=contrib), checkpoint.spec) as session:
        found = session.trace(TOKENS)
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], values, atol=1e-5 * np.abs(values).max(), err_msg=name)


@pytest.mark.parametrize("kind", ENGINES)
def test_a_long_text_is_read_in_steps(kind, folder, checkpoint, rows, monkeypatch):
    for module in (numpy_session, _onnx_session):
        monkeypatch.setattr(module, "STEP", 7)
    with kind(folder, checkpoint.spec) as session:
        assert max_abs_log_prob_difference(rows, session.logits(TOKENS)) < 5e-6
        assert max_abs_log_prob_difference(rows[-1:], session.next_logits(TOKENS)[None]) < 5e-6


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize(
    ("scheme", "dtype", "most"), [(8, np.float32, 5e-6), (2, np.float32, 5e-6), (4, np.float16, 2e-3)]
)
def test_other_codes_and_dtypes(kind, scheme, dtype, most, tmp_path):
    grid = AffineGroups(bits=scheme, group_size=32, symmetric=False)
    model = quantized_model(tiny_config(vocab_size=VOCABULARY), linears(grid))
    expected = ReferenceSession(model).logits(TOKENS)
    for contrib in (True, False):
        folder = write_folder(model, tmp_path / str(contrib), contrib=contrib, element=dtype)
        with kind(folder, model.spec) as session:
            assert max_abs_log_prob_difference(expected, session.logits(TOKENS)) < most
            assert max_abs_log_prob_difference(expected[6:7], session.next_logits(TOKENS[:7])[None]) < most


@pytest.mark.engine("onnxruntime")
@pytest.mark.parametrize("contrib", [True, False])
def test_the_fast_default_of_onnxruntime_is_off_by_its_own_roundings(contrib, checkpoint, rows, tmp_path):
    folder = write_folder(checkpoint, tmp_path / "m", contrib=contrib, level=4)
    with OnnxruntimeSession(folder, checkpoint.spec) as session:  # exact, whatever the graph says
        assert max_abs_log_prob_difference(rows, session.logits(TOKENS)) < 5e-6
    with OnnxruntimeSession(folder, checkpoint.spec, exact=False) as session:
        assert 1e-3 < max_abs_log_prob_difference(rows, session.logits(TOKENS)) < 3e-2  # measured 7e-3


@pytest.fixture(scope="module")
def extended(untuned_model):
    """A model whose two lists of LongRoPE factors differ, ids beyond its original context, and rows to compare with."""
    model = registry.open_checkpoint(untuned_model)
    original = model.spec.rope.original_max_position_embeddings
    assert not model.spec.rope.turns_alike(original, original + 1)
    ids = [1, *(int(i) for i in (np.arange(original + 1) * 31 + 7) % 2000)]
    reference = ReferenceSession(model)
    within, beyond = reference.logits(ids[:original]), reference.logits(ids)
    assert max_abs_log_prob_difference(within, beyond[:original]) > 0.1
    return model, ids, within, beyond


@pytest.mark.parametrize("name", ["onnx-numpy", "onnxruntime", "onnxruntime-genai"])
@pytest.mark.parametrize("ops", ["contrib", "standard"])
def test_a_text_that_grows_beyond_longropes_original_context_is_read_anew(name, ops, extended, tmp_path):
    runtime = registry.runtime(name)
    if runtime.missing() is not None:
        pytest.skip(str(runtime.missing()))
    model, ids, within, beyond = extended
    original = len(within)
    plan = registry.exporter("onnx").prepare(model, ExportOptions(ops=ops, context=len(ids)))
    folder = publish(plan, tmp_path / "model", inputs=model.inputs).path
    with runtime.open(folder) as session:
        for length in (original - 1, original, original + 1, original + 2, original):
            expected = within[length - 1] if length <= original else beyond[length - 1] if length == len(ids) else None
            found = session.next_logits(ids[:length])
            if expected is not None:
                assert max_abs_log_prob_difference(expected[None], found[None]) < 1e-4  # measured 2e-5
        session.next_logits(ids)
        assert max_abs_log_prob_difference(beyond, session.logits(ids)) < 1e-4
        assert max_abs_log_prob_difference(within[-1:], session.next_logits(ids[:original])[None]) < 1e-4
        with pytest.raises(QuantkitError) as caught:
            session.logits([*ids, *ids[:9]])
        assert len(str(caught.value).splitlines()) == 1


# ------------------------------------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize("kind", ENGINES)
def test_a_graph_that_is_none_is_refused_in_one_line(kind, folder, checkpoint, tmp_path, capfd):
    good = (folder / "model.onnx").read_bytes()
    for number, bad in enumerate((b"", b"garbage" * 9, good[:-40], good[: len(good) // 2])):
        broken = write_folder(checkpoint, tmp_path / str(number), contrib=True)
        (broken / "model.onnx").write_bytes(bad)
        with pytest.raises(QuantkitError, match=str(broken)) as caught:
            kind(broken, checkpoint.spec)
        assert len(str(caught.value).splitlines()) == 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("size", [None, 100])
def test_weights_that_are_missing_or_cut_off_are_refused_in_one_line(kind, size, checkpoint, tmp_path):
    folder = write_folder(checkpoint, tmp_path / "m", contrib=True)
    data = folder / "model.onnx.data"
    data.unlink() if size is None else data.write_bytes(data.read_bytes()[:size])
    with pytest.raises(QuantkitError) as caught, kind(folder, checkpoint.spec) as session:
        session.logits([1])
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("kind", TRACING)
def test_a_decoder_of_another_shape_is_refused_in_one_line(kind, checkpoint, tmp_path):
    graph = decoder_model(checkpoint, contrib=False)
    del graph.graph.node[-1], graph.graph.output[0]
    with (
        pytest.raises(QuantkitError, match="logits"),
        kind(write_model(graph, tmp_path / "headless"), checkpoint.spec) as s,
    ):
        s.logits([1])
    graph = decoder_model(checkpoint, contrib=False)
    graph.graph.input[0].name = "tokens"
    for node in graph.graph.node:
        for index, name in enumerate(node.input):
            if name == "input_ids":
                node.input[index] = "tokens"
    with pytest.raises(EngineFailed, match="input"):
        kind(write_model(graph, tmp_path / "renamed"), checkpoint.spec)
    graph = decoder_model(checkpoint, contrib=False)
    for node in graph.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == _cached_decoder.NORM:
                    names[index] = "another name"
    with kind(write_model(graph, tmp_path / "nameless"), checkpoint.spec) as session:
        with pytest.raises(EngineFailed, match="final norm") as caught:
            session.trace([1, 2])
        assert len(str(caught.value).splitlines()) == 1
        assert session.logits([1]).shape == (1, VOCABULARY)


@pytest.mark.parametrize("kind", IN_CHILDREN)
def test_a_killed_engine_is_one_line_and_nothing_stays_behind(kind, folder, checkpoint):
    before = set(descendants(os.getpid()))
    with kind(folder, checkpoint.spec) as session:
        started = [pid for pid in descendants(os.getpid()) if pid not in before]
        os.kill(started[-1], signal.SIGKILL)
        with pytest.raises(EngineFailed, match="SIGKILL") as caught:
            session.logits([1])
    assert len(str(caught.value).splitlines()) == 1
    assert all(map(eventually_gone, started))
