"""The graphs in onnxruntime, in onnx's own evaluator and in onnxruntime-genai, against the reference runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.errors import UnsupportedSpec
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.folding import with_architecture
from quantkit.protocols import ExportOptions
from quantkit.runtimes.reference.runtime import ReferenceSession
from quantkit.tensors.schemes.affine_groups import AffineGroups
from tests.support.memory import tiny_config
from tests.support.onnx_engine import feeds, log_probabilities, run, session
from tests.support.quantized_models import linears, quantized_model

onnx, evaluation = pytest.importorskip("onnx"), pytest.importorskip("onnx.reference")

EXPORTER = registry.exporter("onnx")
CONFIG = tiny_config(
    hidden_size=128, intermediate_size=192, vocab_size=301, num_hidden_layers=2, max_position_embeddings=96
)  # fmt: skip
IDS = np.random.default_rng(7).integers(0, 301, 24).tolist()
LIMIT = 1e-4
"""Of a log-probability: float32 everywhere, in another order."""
SYM, ASYM = AffineGroups(bits=4, group_size=32), AffineGroups(bits=4, group_size=32, symmetric=False)
SCHEMES = {
    "int4 g32 sym": SYM,
    "int4 g32 asym": ASYM,
    "int4 g64 sym, bfloat16 scales": replace(SYM, group_size=64, scale_dtype="bfloat16"),
    "int4 row asym": replace(ASYM, group_size=-1),
    "int8 g32 sym": replace(SYM, bits=8),
    "int8 g32 asym": replace(ASYM, bits=8),
    "int2 g32 sym": replace(SYM, bits=2),
    "int2 g32 asym": replace(ASYM, bits=2),
    "int3 g32 sym": replace(SYM, bits=3),
    "int4 g48 sym": replace(SYM, group_size=48),
    "ternary row": AffineGroups(bits=2, group_size=-1, ternary=True),
}
OPS = ("contrib", "standard")


@cache
def model(name: str, *, everything: bool = False, tied: bool = True) -> Checkpoint:
    """Random weights; with embedding and head quantized if `everything`."""
    config = CONFIG if name != "int4 g48 sym" else {**CONFIG, "hidden_size": 192, "num_attention_heads": 4}
    config = config if tied else {**config, "tie_word_embeddings": False}
    scheme = SCHEMES.get(name)
    if scheme is None:
        return quantized_model(config, lambda _: None)
    chosen = (lambda slot: scheme if len(slot.shape) == 2 else None) if everything else linears(scheme)
    return quantized_model(config, chosen)


def written(checkpoint: Checkpoint, folder: Path, **options: Any) -> Path:
    publish(EXPORTER.prepare(checkpoint, ExportOptions(**options)), folder)
    return folder


def expected(checkpoint: Checkpoint, ids: list[int]) -> np.ndarray:
    with ReferenceSession(checkpoint) as oracle:
        return log_probabilities(oracle.logits(ids))


def distance(engine: Any, checkpoint: Checkpoint, ids: list[int], **given: Any) -> float:
    logits, _ = run(engine, feeds(checkpoint.spec, [ids], **given))
    return float(np.abs(log_probabilities(logits[0]) - expected(checkpoint, ids)).max())


@pytest.mark.parametrize("name", ["dense", *SCHEMES])
@pytest.mark.parametrize("ops", OPS)
def test_onnxruntime_computes_what_the_reference_does(ops: str, name: str, tmp_path: Path) -> None:
    checkpoint = model(name)
    folder = written(checkpoint, tmp_path / "m", ops=ops)
    for level in ("all", "none"):
        assert distance(session(folder, level), checkpoint, IDS) <= LIMIT, level


@pytest.mark.parametrize("name", ["int4 g32 sym", "int4 row asym", "int8 g32 asym", "int2 g32 sym", "ternary row"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("ops", OPS)
def test_a_quantized_embedding_and_head_are_looked_up_and_multiplied(
    ops: str, tied: bool, name: str, tmp_path: Path
) -> None:
    checkpoint = model(name, everything=True, tied=tied)
    folder = written(checkpoint, tmp_path / "m", ops=ops)
    for level in ("all", "none"):
        assert distance(session(folder, level), checkpoint, IDS) <= LIMIT, level


@pytest.mark.parametrize("ops", OPS)
def test_the_folded_model_computes_the_same(ops: str, tmp_path: Path) -> None:
    checkpoint = model("int4 g32 sym")
    folder = written(checkpoint, tmp_path / "m", ops=ops, arch="llama")
    assert distance(session(folder), with_architecture(checkpoint, "llama"), IDS) <= LIMIT


@pytest.mark.parametrize("name", ["dense", "int4 g32 sym", "int4 g32 asym"])
@pytest.mark.parametrize("ops", OPS)
def test_a_graph_of_float16_is_off_by_its_roundings_and_no_more(ops: str, name: str, tmp_path: Path) -> None:
    checkpoint = model(name)
    folder = written(checkpoint, tmp_path / "m", ops=ops, type="f16")
    off = distance(session(folder), checkpoint, IDS, dtype=np.float16)
    assert 1e-4 < off < 5e-2


@pytest.mark.parametrize("ops", OPS)
def test_one_token_at_a_time_is_the_whole_text_at_once(ops: str, tmp_path: Path) -> None:
    checkpoint = model("int4 g32 sym")
    engine = session(written(checkpoint, tmp_path / "m", ops=ops))
    first, past = run(engine, feeds(checkpoint.spec, [IDS[:9]]))
    rows = [first[0]]
    for token in IDS[9:]:
        logits, past = run(engine, feeds(checkpoint.spec, [[token]], past=past))
        rows.append(logits[0])
    assert np.abs(log_probabilities(np.concatenate(rows)) - expected(checkpoint, IDS)).max() <= LIMIT


@pytest.mark.parametrize("ops", OPS)
def test_prompts_of_other_lengths_are_padded_on_the_right(ops: str, tmp_path: Path) -> None:
    checkpoint = model("int4 g32 asym")
    engine = session(written(checkpoint, tmp_path / "m", ops=ops))
    prompts = [IDS[:5], IDS[5:16], IDS[16:]]
    longest = max(map(len, prompts))
    rows = [[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts]
    mask = [[1] * len(prompt) + [0] * (longest - len(prompt)) for prompt in prompts]
    logits, _ = run(engine, feeds(checkpoint.spec, rows, mask))
    for prompt, found in zip(prompts, logits, strict=True):
        assert np.abs(log_probabilities(found[: len(prompt)]) - expected(checkpoint, prompt)).max() <= LIMIT


def test_standard_operators_take_padding_on_the_left_and_go_on_after_it(tmp_path: Path) -> None:
    checkpoint = model("int4 g32 sym")
    engine = session(written(checkpoint, tmp_path / "m", ops="standard"))
    prompts = [IDS[:5], IDS[5:16]]
    rows = [[*[0] * (11 - len(prompt)), *prompt] for prompt in prompts]
    mask = [[0] * (11 - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    logits, past = run(engine, feeds(checkpoint.spec, rows, mask))
    for prompt, found in zip(prompts, logits, strict=True):
        assert np.abs(log_probabilities(found[-len(prompt) :]) - expected(checkpoint, prompt)).max() <= LIMIT
    logits, _ = run(engine, feeds(checkpoint.spec, [[3], [4]], [[*row, 1] for row in mask], past))
    for prompt, token, found in zip(prompts, (3, 4), logits, strict=True):
        wanted = expected(checkpoint, [*prompt, token])[-1]
        assert np.abs(log_probabilities(found[0]) - wanted).max() <= LIMIT


FACTORS = {"short_factor": [1.0 + 0.1 * i for i in range(16)], "long_factor": [1.0 + 0.7 * i for i in range(16)]}
TWO_LISTS: Mapping[str, Any] = {"rope_type": "longrope", **FACTORS, "original_max_position_embeddings": 12}


@pytest.mark.parametrize("ops", OPS)
def test_each_run_chooses_the_factors_by_its_length(ops: str, tmp_path: Path) -> None:
    checkpoint = quantized_model({**CONFIG, "rope_scaling": TWO_LISTS}, linears(SYM))
    planned = EXPORTER.prepare(checkpoint, ExportOptions(ops=ops))
    assert any("more than 12 tokens turns by the long factors" in note for note in planned.notes)
    engine = session(written(checkpoint, tmp_path / "m", ops=ops))
    for length in (5, 12, 13, 24):
        assert distance(engine, checkpoint, IDS[:length]) <= LIMIT, length
    short = written(checkpoint, tmp_path / "s", ops=ops, context=12)
    assert distance(session(short), checkpoint, IDS[:12]) <= LIMIT
    config = (short / "genai_config.json").read_text(encoding="utf-8")
    assert '"context_length": 12' in config


def test_2_bits_of_odd_rows_are_stored_where_onnxruntime_multiplies_them_right(tmp_path: Path) -> None:
    """It fuses UINT2 of 301 columns into wrong numbers: log-probabilities are off by one half."""
    checkpoint = model("int2 g32 sym", everything=True)
    planned = EXPORTER.prepare(checkpoint, ExportOptions(ops="standard"))
    assert "int2 g32 sym: its codes are stored as 4 bits, the numbers are the same" in planned.notes
    assert list(planned.stored) == ["model.embed_tokens.weight"]
    assert EXPORTER.prepare(checkpoint, ExportOptions()).stored == {}
    with pytest.raises(UnsupportedSpec, match=r"embed_tokens\.weight: onnx .* of 301 rows"):
        EXPORTER.prepare(model("int2 g32 asym", everything=True), ExportOptions(ops="standard"))


@pytest.mark.parametrize("name", ["int4 g32 sym", "int4 g32 asym", "int2 g32 sym", "int8 g32 asym"])
def test_onnxruntime_fuses_every_matrix_of_standard_operators(name: str, tmp_path: Path) -> None:
    checkpoint = model(name, everything=True)
    folder = written(checkpoint, tmp_path / "m", ops="standard")
    session(folder, optimized=tmp_path / "fused.onnx")
    fused = onnx.load(str(tmp_path / "fused.onnx"), load_external_data=False)
    kinds = [node.op_type for node in fused.graph.node]
    assert kinds.count("MatMulNBits") == 7 * 2 + 1
    assert "DequantizeLinear" not in kinds
    levels = [a.i for node in fused.graph.node for a in node.attribute if a.name == "accuracy_level"]
    assert set(levels) <= {0}


@pytest.mark.parametrize("name", ["dense", "int4 g32 sym", "int4 g32 asym", "int2 g32 sym"])
@pytest.mark.parametrize("ops", OPS)
def test_the_checker_takes_every_graph(ops: str, name: str, tmp_path: Path) -> None:
    folder = written(model(name, everything=True), tmp_path / "m", ops=ops)
    onnx.checker.check_model(str(folder / "model.onnx"), full_check=True)
    graph = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    domains = {entry.domain: entry.version for entry in graph.opset_import}
    standard = {"": 25 if name == "int2 g32 sym" else 21}
    assert domains == (standard if ops == "standard" else {"": 21, "com.microsoft": 1})


@pytest.mark.parametrize("name", ["dense", "int4 g32 sym", "int4 g32 asym", "int2 g32 sym"])
def test_onnx_evaluates_standard_operators_to_the_same(name: str, tmp_path: Path) -> None:
    checkpoint = model(name, everything=True)
    folder = written(checkpoint, tmp_path / "m", ops="standard")
    evaluator = evaluation.ReferenceEvaluator(str(folder / "model.onnx"))
    found = evaluator.run(["logits"], feeds(checkpoint.spec, [IDS[:16]]))
    assert np.abs(log_probabilities(found[0][0]) - expected(checkpoint, IDS[:16])).max() <= LIMIT


def test_stages_have_the_names_and_values_of_the_reference(tmp_path: Path) -> None:
    checkpoint = model("int4 g32 sym")
    for ops in OPS:
        folder = written(checkpoint, tmp_path / ops, ops=ops)
        graph = onnx.load(str(folder / "model.onnx"), load_external_data=False)
        graph.graph.output.extend(graph.graph.value_info)
        (folder / "traced.onnx").write_bytes(graph.SerializeToString())
        engine = session(folder, name="traced.onnx")
        names = ["embedding", "block 0", "block 1", "final norm"]
        found = dict(zip(names, engine.run(names, feeds(checkpoint.spec, [IDS])), strict=True))
        with ReferenceSession(checkpoint) as oracle:
            stages = oracle.trace(IDS)
        for name in names:
            assert np.abs(found[name][0] - stages[name]).max() <= 1e-4 * np.abs(stages[name]).max(), name


@pytest.mark.parametrize(("ops", "arch"), [("contrib", "native"), ("standard", "native"), ("contrib", "llama")])
def test_genai_generates_the_tokens_of_the_reference(ops: str, arch: str, tmp_path: Path) -> None:
    genai = pytest.importorskip("onnxruntime_genai")
    checkpoint = model("int4 g32 sym", everything=True)
    folder = written(checkpoint, tmp_path / "m", ops=ops, arch=arch)
    found = genai.Model(str(folder))
    settings = genai.GeneratorParams(found)
    settings.set_search_options(max_length=8 + 64, do_sample=False)
    generator = genai.Generator(found, settings)
    generator.append_tokens(np.array([IDS[:8]], np.int32))
    with ReferenceSession(with_architecture(checkpoint, arch)) as oracle:
        ids = list(IDS[:8])
        while not generator.is_done():
            logits = oracle.next_logits(ids)
            assert np.abs(generator.get_logits()[0, 0] - logits).max() <= LIMIT * np.abs(logits).max()
            ids.append(int(logits.argmax()))
            generator.generate_next_token()
    assert generator.get_sequence(0).tolist() == ids
    assert len(ids) == 72


@pytest.mark.parametrize("ops", OPS)
def test_genai_tells_the_graph_how_long_a_text_is(ops: str, tmp_path: Path) -> None:
    """So that the factors are those of the length, not of the buffer that it keeps for the longest text."""
    genai = pytest.importorskip("onnxruntime_genai")
    checkpoint = quantized_model({**CONFIG, "rope_scaling": TWO_LISTS}, linears(SYM))
    found = genai.Model(str(written(checkpoint, tmp_path / "m", ops=ops)))
    for length in (12, 13, 24):
        generator = genai.Generator(found, genai.GeneratorParams(found))
        generator.append_tokens(np.array([IDS[:length]], np.int32))
        logits = log_probabilities(generator.get_logits()[0, 0])
        assert np.abs(logits - expected(checkpoint, IDS[:length])[-1]).max() <= LIMIT, length
