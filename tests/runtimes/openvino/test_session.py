"""OpenVINO itself on the golden model and on small ones: against the reference, step by step, in ragged batches."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit import registry
from quantkit.errors import BadOption, EngineFailed
from quantkit.protocols import ExportOptions, TracingSession
from quantkit.runtimes._openvino_inputs import step_inputs
from quantkit.runtimes.openvino import session as session_module
from quantkit.runtimes.openvino.engine import DEVICE, EXACT
from quantkit.runtimes.openvino.session import OpenVINOSession, TokenizingSession
from quantkit.runtimes.reference.runtime import ReferenceSession
from quantkit.text.tokenizer import open_tokenizer
from quantkit.verification.golden import read_golden
from quantkit.verification.metrics import max_abs_log_prob_difference
from quantkit.verification.steps.predictions import tokenizer_problems
from tests.support.memory import memory_checkpoint, tiny_config
from tests.support.openvino_folders import GRIDS, everything, exported
from tests.support.runs import quantized

pytestmark = pytest.mark.engine("openvino")
RUNS = ("int4-g128-sym", "int4-g128-asym", "int4-g32-sym")
TOKENS = [int(token) for token in np.random.default_rng(3).integers(3, 2000, 300)]
LONGROPE = {
    "rope_type": "longrope",
    "long_factor": [1 + 0.5 * pair for pair in range(8)],
    "short_factor": [1 + 0.01 * pair for pair in range(8)],
    "original_max_position_embeddings": 20,
}
"""Short and long factors that differ."""


@pytest.fixture(scope="module")
def folders(golden_model, tmp_path_factory) -> dict[str, Path]:
    """The golden model's runs, and itself as it is."""
    root, golden = tmp_path_factory.mktemp("runs"), registry.open_checkpoint(golden_model)
    made = {name: exported(quantized(golden, GRIDS[name], "rtn").checkpoint, root / name) for name in RUNS}
    return {**made, "f32": exported(golden, root / "f32", ExportOptions(type="f32"))}


@pytest.fixture(scope="module")
def prompts(golden_model) -> list[list[int]]:
    golden = read_golden(golden_model.parent / "golden.bin")
    return [list(prompt.token_ids) for prompt in golden.prompts]


def request_of(path: Path, settings: Mapping[str, str] = EXACT) -> Any:
    """The engine itself, without quantkit's session."""
    openvino = pytest.importorskip("openvino")
    return openvino.Core().compile_model(str(path / "openvino_model.xml"), DEVICE, settings).create_infer_request()


@pytest.mark.parametrize("name", RUNS)
def test_it_predicts_what_the_reference_predicts(name, folders, prompts):
    """On every golden prompt; measured up to 2e-5."""
    with registry.runtime("openvino").open(folders[name]) as session:
        oracle = registry.runtime("reference").open(folders[name])
        for ids in prompts:
            expected, found = oracle.logits(ids), session.logits(ids)
            assert max_abs_log_prob_difference(expected, found) < 1e-4
            assert expected[-1].argmax() == found[-1].argmax()


@pytest.mark.parametrize("name", ["int4-g128-sym", "f32"])
def test_step_by_step_is_all_at_once(name, folders):
    """Over 300 tokens, each with the state that the last one left."""
    with registry.runtime("openvino").open(folders[name]) as session:
        whole = session.logits(TOKENS)
        steps = np.stack([session.next_logits(TOKENS[: end + 1]) for end in range(len(TOKENS))])
    assert max_abs_log_prob_difference(whole, steps) < 1e-4


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_ragged_batch_is_its_prompts_alone(side, folders):
    """Three prompts, padded on either side; then one more token for each, behind the state."""
    request = request_of(folders["int4-g128-sym"])
    prompts, width = [TOKENS[:20], TOKENS[50:57], TOKENS[90:103]], 20
    places = [slice(0, len(p)) if side == "right" else slice(width - len(p), width) for p in prompts]
    ids, mask, positions = (np.full((3, width), fill, np.int64) for fill in (0, 0, 1))
    for row, (prompt, place) in enumerate(zip(prompts, places, strict=True)):
        ids[row, place], mask[row, place], positions[row, place] = prompt, 1, np.arange(len(prompt))
    beams = np.arange(3, dtype=np.int32)
    request.infer({"input_ids": ids, "attention_mask": mask, "position_ids": positions, "beam_idx": beams})
    first = request.get_tensor("logits").data.copy()
    following = {"input_ids": np.array([[5], [6], [7]]), "attention_mask": np.hstack([mask, np.ones((3, 1), np.int64)])}
    following["position_ids"] = np.array([[len(prompt)] for prompt in prompts])
    request.infer({**following, "beam_idx": beams})
    then = request.get_tensor("logits").data
    oracle = registry.runtime("reference").open(folders["int4-g128-sym"])
    for row, (prompt, place) in enumerate(zip(prompts, places, strict=True)):
        assert max_abs_log_prob_difference(oracle.logits(prompt), first[row, place]) < 1e-4
        assert max_abs_log_prob_difference(oracle.next_logits([*prompt, 5 + row])[None], then[row]) < 1e-4


def test_rows_go_on_from_the_rows_that_beam_idx_names(folders):
    request = request_of(folders["int4-g128-sym"])
    ids, positions = np.array([TOKENS[:9], TOKENS[20:29]]), np.arange(9)[None].repeat(2, 0)
    inputs = {"input_ids": ids, "attention_mask": np.ones((2, 9), np.int64), "position_ids": positions}
    request.infer({**inputs, "beam_idx": np.arange(2, dtype=np.int32)})
    inputs = {"input_ids": np.array([[5], [6]]), "attention_mask": np.ones((2, 10), np.int64)}
    inputs["position_ids"] = np.full((2, 1), 9)
    request.infer({**inputs, "beam_idx": np.array([1, 0], np.int32)})
    found = request.get_tensor("logits").data
    oracle = registry.runtime("reference").open(folders["int4-g128-sym"])
    for row, prompt in enumerate(([*TOKENS[20:29], 5], [*TOKENS[:9], 6])):
        assert max_abs_log_prob_difference(oracle.next_logits(prompt)[None], found[row]) < 1e-4


def test_weights_stay_compressed_and_the_graph_is_fused(folders):
    """What the engine makes of the graph: as its own tools' exports become."""
    nodes = request_of(folders["int4-g128-sym"]).get_compiled_model().get_runtime_model().get_ops()
    kinds = [node.get_rt_info()["layerType"].astype(str) for node in nodes]
    assert (kinds.count("ScaledDotProductAttention"), kinds.count("RoPE"), kinds.count("RMS")) == (5, 10, 11)
    matrices = [node for node, kind in zip(nodes, kinds, strict=True) if kind == "FullyConnected"]
    types = [str(node.input(1).get_source_output().get_element_type()) for node in matrices]
    assert sum("int4" in kind for kind in types) == 35


def test_its_defaults_round(folders, prompts):
    """Which is the engine's own error, not the artifact's: 1e-3 to 3e-1 of a log-probability, by the processor."""
    request, ids = request_of(folders["int4-g128-sym"], {}), prompts[0]
    request.infer(step_inputs(ids, 0))
    expected = registry.runtime("reference").open(folders["int4-g128-sym"]).logits(ids)
    assert 1e-4 < max_abs_log_prob_difference(expected, request.get_tensor("logits").data[0]) < 1.0


@pytest.mark.parametrize("name", ["int2-g64-sym", "int2-g32-asym", "ternary-g64"])
def test_two_bits_run_at_its_defaults(name, tmp_path):
    """Which would fail on them, by an exception or an empty tensor, without the setting in the graph."""
    path = exported(everything(GRIDS[name]), tmp_path / "out")
    request = request_of(path, {})
    request.infer(step_inputs(TOKENS_OF_SMALL, 0))
    expected = registry.runtime("reference").open(path).logits(TOKENS_OF_SMALL)
    assert max_abs_log_prob_difference(expected, request.get_tensor("logits").data[0]) < 0.3


@pytest.mark.parametrize(("name", "tied"), list(zip(GRIDS, cycle([True, False]), strict=False)))
def test_it_computes_every_grid(name, tied, tmp_path):
    """Embedding and head on it too, one matrix or two."""
    path = exported(everything(GRIDS[name], tie_word_embeddings=tied), tmp_path / "out")
    check_alike(path, TOKENS_OF_SMALL)


@pytest.mark.parametrize(("kind", "arch"), [("f16", "native"), ("bf16", "native"), ("f32", "native"), ("f16", "llama")])
def test_it_computes_dense_weights(kind, arch, tmp_path):
    options = ExportOptions(type=kind, arch=arch)
    check_alike(exported(memory_checkpoint(tiny_config()), tmp_path / "out", options), [5, 9, 90, 3, 3, 17])


TOKENS_OF_SMALL = [token % 320 for token in TOKENS[:24]]


def check_alike(path: Path, ids: list[int], bound: float = 1e-4) -> None:
    """At once and step by step, in the engine and in numpy; measured up to 2e-5."""
    expected = registry.runtime("reference").open(path).logits(ids)
    assert np.ptp(expected) > 1e-2
    for engine in ("openvino", "openvino-numpy"):
        with registry.runtime(engine).open(path) as session:
            assert max_abs_log_prob_difference(expected, session.logits(ids)) < bound
            last = session.next_logits(ids[:-1]), session.next_logits(ids)
            assert max_abs_log_prob_difference(expected[-2:], np.stack(last)) < bound


@pytest.mark.parametrize("rope", [LONGROPE, {"rope_type": "linear", "factor": 2.0}])
def test_the_rotation_follows_the_length(rope, tmp_path):
    """Within the original context, across its end, and beyond it; the session computes anew where keys would differ."""
    path = exported(memory_checkpoint(tiny_config(rope_scaling=rope)), tmp_path / "out", ExportOptions(type="f32"))
    ids = [token % 97 for token in TOKENS[:40]]
    oracle = registry.runtime("reference").open(path)
    with registry.runtime("openvino").open(path) as session:
        for length in (10, 19, 20, 21, 22, 40):
            part = ids[:length]
            assert max_abs_log_prob_difference(oracle.logits(part), session.logits(part)) < 1e-4
            assert max_abs_log_prob_difference(oracle.next_logits(part)[None], session.next_logits(part)[None]) < 1e-4


@pytest.mark.parametrize("length", [20, 21, 40])
def test_dynamic_ntk_stretches_by_the_length(length, tmp_path):
    """Beyond the model's context, where quantkit's own sessions do not go, but the graph does."""
    rope = {"rope_type": "dynamic", "factor": 4.0}
    config = tiny_config(rope_scaling=rope, max_position_embeddings=20)
    path = exported(memory_checkpoint(config), tmp_path / "out", ExportOptions(type="f32"))
    checkpoint = registry.open_checkpoint(path)
    longer = replace(checkpoint, spec=replace(checkpoint.spec, max_position_embeddings=64))
    ids = [token % 97 for token in TOKENS[:length]]
    found = request_of(path)
    found.infer(step_inputs(ids, 0))
    expected = ReferenceSession(longer).logits(ids)
    assert max_abs_log_prob_difference(expected, found.get_tensor("logits").data[0]) < 1e-4


def test_the_factors_of_a_growing_text_are_the_steps_own(tmp_path):
    """The rule of the graph: kept keys are turned as they were, so that a text that grows is not one read at once."""
    path = exported(memory_checkpoint(tiny_config(rope_scaling=LONGROPE)), tmp_path / "out", ExportOptions(type="f32"))
    request, ids, found = request_of(path), [token % 97 for token in TOKENS[:30]], []
    for end, token in enumerate(ids):
        request.infer(step_inputs([token], end))
        found.append(request.get_tensor("logits").data[0, 0].copy())
    oracle = registry.runtime("reference").open(path)
    assert max_abs_log_prob_difference(oracle.logits(ids[:20]), np.stack(found[:20])) < 1e-4
    assert max_abs_log_prob_difference(oracle.logits(ids)[20:], np.stack(found[20:])) > 1e-2


def test_its_stages_are_the_references(folders):
    with registry.runtime("openvino").open(folders["int4-g32-sym"]) as session:
        assert isinstance(session, TracingSession)
        found = session.trace(TOKENS[:40])
    expected = registry.runtime("reference").open(folders["int4-g32-sym"]).trace(TOKENS[:40])
    assert list(found) == list(expected)
    for name, stage in expected.items():
        np.testing.assert_allclose(found[name], stage, rtol=0, atol=3e-5 * np.abs(stage).max(), err_msg=name)


def test_a_long_sequence_is_computed_in_steps(folders, monkeypatch):
    """Which join to the whole."""
    with registry.runtime("openvino").open(folders["f32"]) as session:
        whole = session.logits(TOKENS)
        monkeypatch.setattr(session_module, "STEP", 37)
        assert max_abs_log_prob_difference(whole, session.logits(TOKENS)) < 1e-4
        assert max_abs_log_prob_difference(whole[-1:], session.next_logits(TOKENS)[None]) < 1e-4


def test_it_reads_a_text_by_the_graph_in_the_folder(folders, golden_model):
    pytest.importorskip("openvino_tokenizers")
    own = open_tokenizer(registry.open_checkpoint(golden_model))
    text = "<|im_start|>user\n  two  words<|im_end|>"
    with registry.runtime("openvino").open(folders["f32"]) as session:
        assert isinstance(session, TokenizingSession)
        assert session.tokenize(text, add_special=True, parse_special=True) == own.encode(text)
        assert session.tokenize(text, add_special=False, parse_special=True) == own.encode(text, add_bos=False)
        with pytest.raises(BadOption):
            session.tokenize(text, add_special=True, parse_special=False)


def test_a_tokenizer_of_another_model_fails_verification(folders, golden_model, tmp_path):
    pytest.importorskip("openvino_tokenizers")
    other = json.loads((golden_model / "tokenizer.json").read_text())
    vocabulary = other["model"]["vocab"]
    one, two = vocabulary["\u2581the"], vocabulary["\u2581a"]
    vocabulary["\u2581the"], vocabulary["\u2581a"] = two, one
    model = registry.open_checkpoint(golden_model)
    files = {name: read for name, read in model.files.items() if name != "tokenizer.model"}
    files["tokenizer.json"] = lambda: json.dumps(other).encode()
    wrong = exported(replace(model, files=files), tmp_path / "wrong", ExportOptions(type="f32"))
    right = shutil.copytree(folders["f32"], tmp_path / "mixed")
    for name in ("openvino_tokenizer.xml", "openvino_tokenizer.bin"):
        shutil.copy(wrong / name, right / name)
    golden = read_golden(golden_model.parent / "golden.bin")
    texts = [prompt for prompt in golden.prompts if prompt.text]
    with registry.runtime("openvino").open(folders["f32"]) as session:
        assert tokenizer_problems(session, "openvino", texts) == []
    with registry.runtime("openvino").open(right) as session:
        assert any("as other tokens" in problem for problem in tokenizer_problems(session, "openvino", texts))


def test_what_it_cannot_compute_is_one_line(folders, tmp_path):
    with registry.runtime("openvino").open(folders["int4-g128-sym"]) as session:
        for ids in ([], [-1], [2048], [1] * 1025):
            with pytest.raises(BadOption):
                session.logits(ids)
    broken = tmp_path / "broken.xml"
    broken.write_text("<net/>")
    with pytest.raises(EngineFailed, match="OpenVINO"):
        OpenVINOSession(tmp_path, broken, registry.open_checkpoint(folders["f32"]).spec, 100)
