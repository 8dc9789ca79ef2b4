"""`quantize --method exact`: dense files of weights that were trained for few bits are taken over, others refused."""

from __future__ import annotations

import numpy as np
import pytest

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.errors import BadOption, UnsupportedSpec
from quantkit.models.inspection import inspection
from quantkit.models.spec import LINEAR_ROLES
from quantkit.pipeline.options import QuantizeOptions
from quantkit.pipeline.quantization import Quantization
from quantkit.protocols import ExportOptions
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView, TensorView
from tests.support.quantized_models import linears as all_linears
from tests.support.quantized_models import quantized_model
from tests.support.runs import read_through
from tests.support.tiny import tiny_config

SCHEMES = [
    AffineGroups(bits=4, group_size=32),
    AffineGroups(bits=4, group_size=-1),
    AffineGroups(bits=3, group_size=32),
]


def unquantized(scheme, folder):
    """The bfloat16 file that `export hf` writes of a model with codes: the form in which such models are published."""
    source = quantized_model(tiny_config(), all_linears(scheme))
    return source, registry.open_checkpoint(
        publish(registry.exporter("hf").prepare(source, ExportOptions(type="bf16")), folder / "dense").path
    )


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("container", ["gptq", "compressed-tensors"])
def test_an_unquantized_file_becomes_codes_that_round_to_it(scheme, container, tmp_path):
    if container == "gptq" and scheme.bits == 3:
        container = "gguf"  # as Q4_0
    _, dense = unquantized(scheme, tmp_path)
    run = Quantization(dense, QuantizeOptions(method="exact", scheme=scheme))
    made = run.checkpoint
    exported = registry.open_checkpoint(
        publish(registry.exporter(container).prepare(made, ExportOptions()), tmp_path / "out.gguf").path
    )
    for slot in dense.spec.slots():
        if slot.role in LINEAR_ROLES:
            wanted, found = dense.weights[slot.name], exported.weights[slot.name]
            assert isinstance(wanted, TensorView)
            assert isinstance(found, QuantizedView)
            rounded = found.read().dequantized().astype(wanted.dtype)
            assert np.array_equal(rounded.astype(np.float32), wanted.read().astype(np.float32))
    assert run.report()["calibration"] is None
    assert max(one["error"] for one in run.report()["tensors"].values()) < 2.0**-16


def test_inspect_says_on_which_grid_a_model_lies(tmp_path):
    _, dense = unquantized(SCHEMES[0], tmp_path)
    (note,) = inspection(dense).notes
    assert "--method exact --bits 4 --group-size 32" in note


def test_weights_that_lie_on_no_grid_are_refused_by_name(tmp_path):
    _, dense = unquantized(SCHEMES[0], tmp_path)
    run = Quantization(dense, QuantizeOptions(method="exact", scheme=SCHEMES[1]))
    with pytest.raises(UnsupportedSpec, match=r"model\.layers\.0\.self_attn\.q_proj\.weight: \S+ % of its groups"):
        read_through(run)


@pytest.mark.parametrize(
    "scheme",
    [AffineGroups(bits=4, group_size=32, symmetric=False), AffineGroups(bits=2, group_size=32, ternary=True)],
    ids=str,
)
def test_only_symmetric_codes_are_taken_over(scheme, tmp_path):
    _, dense = unquantized(SCHEMES[0], tmp_path)
    with pytest.raises(UnsupportedSpec, match="only symmetric codes"):
        read_through(Quantization(dense, QuantizeOptions(method="exact", scheme=scheme)))


def test_nothing_is_smoothed(tmp_path):
    _, dense = unquantized(SCHEMES[0], tmp_path)
    with pytest.raises(BadOption, match="nothing to smooth"):
        Quantization(dense, QuantizeOptions(method="exact", smooth=True))
