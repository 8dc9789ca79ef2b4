"""A model that attends sparsely in onnxruntime, against the reference: prompts, in pieces and whole, and decoding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.errors import EngineFailed
from quantkit.models.checkpoint import Checkpoint
from quantkit.protocols import ExportOptions
from quantkit.runtimes import _onnx_session
from quantkit.runtimes._sparse_decoder import Sizes, SparseDecoder
from quantkit.runtimes.onnx_numpy import session as numpy_session
from quantkit.runtimes.onnxruntime.engine import DTYPES, in_place
from quantkit.runtimes.reference.session import ReferenceSession
from quantkit.runtimes.reference.sparse.session import SparseSession
from quantkit.tensors.schemes.affine_groups import AffineGroups
from tests.support.memory import tiny_config
from tests.support.onnx_engine import session
from tests.support.quantized_models import linears, quantized_model

EXPORTER = registry.exporter("onnx")
SPARSE = {
    "kernel_size": 4, "kernel_stride": 2, "init_blocks": 1, "block_size": 4, "window_size": 8, "topk": 3,
    "dense_len": 40,
}  # fmt: skip
IDS = np.random.default_rng(0).integers(0, 97, 300).tolist()
LIMIT = 1e-3
INT4 = AffineGroups(bits=4, group_size=32)
ENGINES = [
    pytest.param("onnx-numpy", id="numpy"),
    pytest.param("onnxruntime", marks=pytest.mark.engine("onnxruntime"), id="onnxruntime"),
]


def everything(scheme: AffineGroups) -> Any:
    return lambda slot: scheme if len(slot.shape) == 2 else None


def model(
    choice: Any = lambda _: None, *, heads: int = 4, groups: int = 2, rope: Any = None, **changes: Any
) -> Checkpoint:
    config = tiny_config(
        sparse_config={**SPARSE, **changes}, max_position_embeddings=512, num_attention_heads=heads,
        num_key_value_heads=groups, num_hidden_layers=2, rope_scaling=rope,
    )  # fmt: skip
    return quantized_model(config, choice)


def written(checkpoint: Checkpoint, folder: Path, **options: Any) -> Path:
    publish(EXPORTER.prepare(checkpoint, ExportOptions(attention="sparse", **options)), folder)
    return folder


def difference(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found - wanted).max())


MODELS = {
    "plain": model,
    "one group": lambda: model(heads=16, groups=1),
    "as many groups as heads": lambda: model(heads=4, groups=4),
    "not rotated": lambda: model(use_nope=True),
    "always": lambda: model(dense_len=-1),
    "int4": lambda: model(linears(INT4)),
    "int4 everywhere": lambda: model(everything(INT4)),
    "int4 with zero points": lambda: model(everything(AffineGroups(bits=4, group_size=32, symmetric=False))),
}


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Any:
    return registry.runtime(request.param)


CASES = [pytest.param("onnxruntime", name, marks=ENGINES[1].marks) for name in MODELS]


@pytest.mark.parametrize(
    ("runtime", "name"), [*CASES, ("onnx-numpy", "not rotated"), ("onnx-numpy", "int4 everywhere")]
)
def test_prompts_and_decoding_are_those_of_the_reference(
    runtime: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = MODELS[name]()
    with registry.runtime(runtime).open(written(checkpoint, tmp_path / "m")) as session:
        for length in (1, 4, 15, 39, 40, 41, 63, 64, 127):
            wanted = SparseSession(checkpoint).logits(IDS[:length])
            assert difference(session.logits(IDS[:length]), wanted) <= LIMIT, length
        assert difference(wanted, ReferenceSession(checkpoint).logits(IDS[:127])) > 10 * LIMIT
        for module in (_onnx_session, numpy_session):
            monkeypatch.setattr(module, "STEP", 7)
        assert difference(session.logits(IDS[:127]), wanted) <= LIMIT
        oracle = SparseSession(checkpoint)
        for length in (*range(32, 50), 90, *range(91, 97), 20, 20, 21):
            assert difference(session.next_logits(IDS[:length]), oracle.next_logits(IDS[:length])) <= LIMIT, length
            if length == 45:
                session.logits(IDS[:5])  # of which decoding knows nothing


@pytest.mark.parametrize("level", ["all", "none"])
def test_the_graph_is_right_however_it_is_optimized(level: str, tmp_path: Path) -> None:
    checkpoint = model(linears(INT4))
    graph = session(written(checkpoint, tmp_path / "m"), level)
    sizes = Sizes(blocks=2, groups=2, width=16, block_size=4, stride=2)
    inputs = {given.name: DTYPES[given.type] for given in graph.get_inputs()}
    decoder = SparseDecoder(in_place(graph), {name: np.dtype(kind) for name, kind in inputs.items()}, sizes)
    wanted = SparseSession(checkpoint).logits(IDS[:127])
    for step in (127, 30):
        assert difference(decoder.logits(IDS[:127], step), wanted) <= LIMIT


def test_two_lists_of_factors_turn_as_the_length_says(engine: Any, tmp_path: Path) -> None:
    rope = {
        "rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [3.0] * 8,
        "original_max_position_embeddings": 48,
    }  # fmt: skip
    for nope in (False, True):
        checkpoint = model(rope=rope, use_nope=nope)
        oracle = SparseSession(checkpoint)
        with engine.open(written(checkpoint, tmp_path / str(nope))) as session:
            for length in (30, 47, 48, 49, 50, 80):
                assert difference(session.next_logits(IDS[:length]), oracle.next_logits(IDS[:length])) <= LIMIT
                assert difference(session.logits(IDS[:length]), oracle.logits(IDS[:length])) <= LIMIT


def test_float16_rounds_what_is_remembered_and_no_more(tmp_path: Path) -> None:
    checkpoint = model()
    with registry.runtime("onnxruntime").open(written(checkpoint, tmp_path / "m", type="f16")) as session:
        wanted = SparseSession(checkpoint).logits(IDS[:127])
        assert 1e-5 < difference(session.logits(IDS[:127]), wanted) < 2e-2
        oracle = SparseSession(checkpoint)
        for length in range(38, 44):
            assert difference(session.next_logits(IDS[:length]), oracle.next_logits(IDS[:length])) < 2e-2


def test_stages_are_those_of_the_reference(engine: Any, tmp_path: Path) -> None:
    checkpoint = model()
    wanted = SparseSession(checkpoint).trace(IDS[:64])
    with engine.open(written(checkpoint, tmp_path / "m")) as session:
        found = session.trace(IDS[:64])
    assert list(found) == list(wanted)
    for name, values in wanted.items():
        assert difference(found[name], values) <= LIMIT, name


def test_onnxruntime_genai_says_why_it_cannot(tmp_path: Path) -> None:
    back = EXPORTER.read(written(model(), tmp_path / "m"))
    assert back.attention == "sparse"
    assert "buffers" in str(registry.runtime("onnxruntime-genai").refuses(back))
    assert registry.runtime("onnxruntime").refuses(back) is None


def test_a_graph_that_does_not_attend_so_is_refused() -> None:
    sizes = Sizes(blocks=1, groups=1, width=8, block_size=4, stride=2)
    with pytest.raises(EngineFailed, match=r"lacks the input 'past_key_values\.0\.coarse'"):
        SparseDecoder(lambda *_: {}, {"input_ids": np.dtype(np.int64)}, sizes)
