"""A model that attends sparsely in onnxruntime, against the reference: prompts, in pieces and whole, and decoding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import NORM_ROLES
from quantkit.protocols import ExportOptions
from quantkit.runtimes import _onnx_session
from quantkit.runtimes.onnxruntime.session import OnnxruntimeSession
from quantkit.runtimes.reference.session import ReferenceSession
from quantkit.runtimes.reference.sparse.session import SparseSession
from quantkit.tensors.schemes.affine_groups import AffineGroups
from tests.support.memory import tiny_config
from tests.support.quantized_models import linears, quantized_model

pytestmark = pytest.mark.engine("onnxruntime")

EXPORTER = registry.exporter("onnx")
SPARSE = {
    "kernel_size": 4, "kernel_stride": 2, "init_blocks": 1, "block_size": 4, "window_size": 8, "topk": 3,
    "dense_len": 40,
}  # fmt: skip
IDS = np.random.default_rng(0).integers(0, 97, 300).tolist()
LIMIT = 1e-3
INT4 = AffineGroups(bits=4, group_size=32)


def model(
    choice: Any = lambda _: None, *, heads: int = 4, groups: int = 2, rope: Any = None, **changes: Any
) -> Checkpoint:
    config = tiny_config(
        sparse_config={**SPARSE, **changes}, max_position_embeddings=512, num_attention_heads=heads,
        num_key_value_heads=groups, num_hidden_layers=2, rope_scaling=rope,
    )  # fmt: skip
    return quantized_model(config, choice)


def opened(checkpoint: Checkpoint, folder: Path, **options: Any) -> OnnxruntimeSession:
    publish(EXPORTER.prepare(checkpoint, ExportOptions(attention="sparse", **options)), folder / "m")
    back = EXPORTER.read(folder / "m")
    assert back.attention == "sparse"
    session: OnnxruntimeSession = registry.runtime("onnxruntime").open(folder / "m")
    return session


def difference(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found - wanted).max())


MODELS = {
    "plain": lambda: model(),
    "one group": lambda: model(heads=16, groups=1),
    "as many groups as heads": lambda: model(heads=4, groups=4),
    "not rotated": lambda: model(use_nope=True),
    "always": lambda: model(dense_len=-1),
    "int4": lambda: model(linears(INT4)),
    "int4 everywhere": lambda: model(lambda slot: INT4 if slot.role not in NORM_ROLES else None),
}


@pytest.mark.parametrize("name", MODELS)
def test_prompts_and_decoding_are_those_of_the_reference(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = MODELS[name]()
    with opened(checkpoint, tmp_path) as session:
        for length in (1, 3, 4, 7, 8, 15, 16, 17, 39, 40, 41, 63, 64, 127):
            wanted = SparseSession(checkpoint).logits(IDS[:length])
            assert difference(session.logits(IDS[:length]), wanted) <= LIMIT, length
        monkeypatch.setattr(_onnx_session, "STEP", 7)
        assert difference(session.logits(IDS[:127]), wanted) <= LIMIT
        monkeypatch.undo()
        oracle = SparseSession(checkpoint)
        for length in (*range(30, 60), 90, *range(91, 110), 20, 21):
            assert difference(session.next_logits(IDS[:length]), oracle.next_logits(IDS[:length])) <= LIMIT, length
