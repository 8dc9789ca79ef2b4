"""The golden model in int4, exported to ONNX, in every engine of the container: verified, and run token by token."""

from __future__ import annotations

import numpy as np
import pytest

import quantkit
from quantkit import registry
from quantkit.pipeline.options import QuantizeOptions
from quantkit.protocols import ExportOptions
from quantkit.runtimes.reference.runtime import ReferenceSession
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.verification.metrics import max_abs_log_prob_difference

pytest.importorskip("onnx")
NAMES = ("onnx-numpy", "onnxruntime", "onnxruntime-genai")
ENGINES = [pytest.param(name, marks=pytest.mark.engine(name)) for name in NAMES]
OPS = ("contrib", "standard")
ROWS = 300


@pytest.fixture(scope="module")
def int4(golden_model, tmp_path_factory):
    options = QuantizeOptions(method="rtn", scheme=AffineGroups(bits=4, group_size=128))
    return quantkit.quantize(golden_model, tmp_path_factory.mktemp("int4") / "model", options).path


@pytest.fixture(scope="module")
def artifacts(int4, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    return {ops: quantkit.export("onnx", int4, folder / ops, ExportOptions(ops=ops)).path for ops in OPS}


@pytest.fixture(scope="module")
def ids(int4):
    """Text of the model's own, greedy, from a prompt of five."""
    found = [1, 372, 45, 1900, 7]
    with ReferenceSession(registry.open_checkpoint(int4)) as reference:
        while len(found) < ROWS:
            found.append(int(reference.next_logits(found).argmax()))
    return found


@pytest.fixture(scope="module")
def rows(int4, ids):
    return ReferenceSession(registry.open_checkpoint(int4)).logits(ids)


PROVED = dict(zip(NAMES, (*OPS, "contrib"), strict=True))


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_proves_the_artifact(engine, artifacts, golden_model):
    report = quantkit.verify(artifacts[PROVED[engine]], golden=golden_model.parent / "golden.bin", engine=engine)
    assert report.passed
    assert report.engine == engine
    (check,) = [check for check in report.checks if check.name == f"{engine} against reference"]
    for comparison in check.comparisons:
        assert comparison.max_abs_log_prob_difference < 5e-5  # measured 7e-6


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("ops", OPS)
def test_tokens_on_the_cache_are_those_of_the_whole_text_at_once(engine, ops, artifacts, ids, rows):
    """Row for row of 300 tokens, and with them the greedy choice of all that were generated; 70 in numpy."""
    count = 70 if engine == "onnx-numpy" else ROWS
    with registry.runtime(engine).open(artifacts[ops]) as session:
        found = np.stack([session.next_logits(ids[: length + 1]) for length in range(count)])
        assert max_abs_log_prob_difference(session.logits(ids)[:count], found) < 5e-5
    assert max_abs_log_prob_difference(rows[:count], found) < 5e-5
    assert (found.argmax(-1)[4:-1] == ids[5:count]).all()
