"""The bytes that steps of a run are kept in."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from quantkit.models.spec import Role
from quantkit.pipeline.resumption import decoded_block, decoded_samples, encoded_block, encoded_samples, kept_bytes
from quantkit.protocols import TensorReport
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.schemes.affine_groups import AffineGroups
from tests.support.killed_runs import sequences


@pytest.mark.parametrize("scale_dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_a_block_comes_back_from_its_bytes(bits: int, scale_dtype: str) -> None:
    rng = np.random.default_rng(bits)
    dtype = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}[scale_dtype]
    spec = AffineGroups(bits=bits, group_size=-1, symmetric=False, scale_dtype=scale_dtype)
    tensors = {
        name: QuantizedTensor(
            spec,
            rng.integers(0, 2**bits, (rows, 37), np.uint8),
            {
                "scale": rng.standard_normal((rows, 1)).astype(dtype),
                "zero": rng.integers(0, 2**bits, (rows, 1), np.uint8),
            },
        )
        for name, rows in (("a", 5), ("b", 3))
    }
    reports = {
        "a": TensorReport(0.1 + 0.2, 1e-300, None, "why", left_out="c", error_without=0.3, error_with=0.1),
        "b": TensorReport(0.0, None, 0.5, smoothing=0.35),
    }
    scales = {Role.V: rng.random(7).astype(np.float32), Role.MLP_NORM: rng.random(5).astype(np.float32)}
    data = encoded_block(tensors, reports, scales)
    found, found_reports, found_scales = decoded_block(memoryview(data))
    assert found_reports == reports
    assert {role: scale.tobytes() for role, scale in found_scales.items()} == {
        role: scale.tobytes() for role, scale in scales.items()
    }
    assert list(found) == ["a", "b"]
    for name, tensor in tensors.items():
        assert found[name].scheme == spec
        for part in ("codes", "scale", "zero"):
            assert getattr(found[name], part).tobytes() == getattr(tensor, part).tobytes()
    arrays = sum(kept_bytes(tensor.shape, spec) for tensor in tensors.values())
    assert len(data) == 8 + int.from_bytes(data[:8], "little") + arrays + 4 * 12


def test_samples_come_back_from_their_bytes() -> None:
    samples = sequences()
    found = decoded_samples(memoryview(encoded_samples(samples)))
    assert found.coverage == samples.coverage
    for one, other in zip(found.sequences, samples.sequences, strict=True):
        assert one.dtype == np.int64
        assert np.array_equal(one, other)
