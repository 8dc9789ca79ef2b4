"""Folders that other tools wrote with their own code (see `strangers/make.py`): read, checked against what the tool
itself makes of them, and carried to every container that can hold them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.errors import UnsupportedSpec
from quantkit.protocols import ExportOptions
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.schemes.offset_groups import OffsetGroups
from quantkit.tensors.views import QuantizedView, TensorView, Weight
from tests.exporters.test_same_numbers import offers, read_offer

FOLDERS = Path(__file__).resolve().parent / "strangers"
SYM4, ASYM4 = AffineGroups(bits=4, group_size=32), AffineGroups(bits=4, group_size=32, symmetric=False)
GRIDS = {
    "gptqmodel-v1": ("gptq", SYM4),
    "gptqmodel-3bit": ("gptq", AffineGroups(bits=3, group_size=32)),
    "gptqmodel-asym-v1": ("gptq", ASYM4),
    "gptqmodel-asym-v2": ("gptq", ASYM4),
    "gptqmodel-act-order": ("gptq", None),
    "llm-compressor-sym": ("compressed-tensors", SYM4),
    "llm-compressor-asym": ("compressed-tensors", ASYM4),
}
"""Container and grid of each folder; None where columns of a group are scattered, so that only values remain."""

CARRIED = {
    "sym": {"gptq:v1", "gptq:v2", "awq:gemm", "compressed-tensors:pack-quantized", "gguf:q4_0"},
    "asym": {"gptq:v2", "awq:gemm", "compressed-tensors:pack-quantized"},
    "3 bits": {"gptq:v1", "gptq:v2", "compressed-tensors:pack-quantized"},
}
"""What must take a folder; others may."""


def values_of(weight: Weight) -> np.ndarray:
    return weight.read().dequantized() if isinstance(weight, QuantizedView) else weight.read().astype(np.float32)


@pytest.mark.parametrize("name", GRIDS)
def test_a_strangers_weights_are_what_the_stranger_makes_of_them(name: str) -> None:
    """Its kernel computes in float16, so one rounding of difference is the stranger's own."""
    container, spec = GRIDS[name]
    checkpoint = registry.open_checkpoint(FOLDERS / name)
    assert checkpoint.format == container
    with np.load(FOLDERS / name / "expected.npz") as expected:
        for layer, theirs in expected.items():
            weight = checkpoint.weights[f"{layer}.weight"]
            assert isinstance(weight, TensorView if spec is None else QuantizedView)
            assert spec is None or weight.scheme == spec  # type: ignore[union-attr]
            assert np.array_equal(values_of(weight).astype(np.float16), theirs), layer


def kind_of(spec: AffineGroups) -> str:
    return "3 bits" if spec.bits == 3 else "sym" if spec.symmetric else "asym"


@pytest.mark.parametrize("offer", offers())
@pytest.mark.parametrize("name", [name for name, (_, spec) in GRIDS.items() if spec is not None])
def test_it_goes_to_every_container_that_can_hold_it_with_equal_values(name: str, offer: str, tmp_path: Path) -> None:
    given = registry.open_checkpoint(FOLDERS / name)
    exporter, options = read_offer(offer)
    try:
        planned = exporter.prepare(given, options)
    except UnsupportedSpec as refusal:
        spec = GRIDS[name][1]
        assert spec is not None
        assert offer not in CARRIED[kind_of(spec)]
        assert refusal.hint
        return
    publish(planned, tmp_path / "out", inputs=given.inputs)
    back = registry.open_checkpoint(tmp_path / "out")
    for weight, view in given.weights.items():
        if not isinstance(view, QuantizedView):
            continue
        found = back.weights[weight]
        if isinstance(found, QuantizedView):
            values = values_of(view)
            if isinstance(found.scheme, OffsetGroups):
                offset = found.read().arrays["offset"].astype(np.float32)
                reach = np.abs(offset).repeat(values.shape[1] // offset.shape[1], axis=1)
                assert (np.abs(values_of(found) - values) <= reach * 2.0**-11 + 2.0**-25).all(), weight
            else:
                assert np.array_equal(values_of(found), values), weight
        else:
            assert np.array_equal(found.read(), values_of(view).astype(found.dtype)), weight


def test_scattered_act_order_goes_nowhere_that_packs_integers(tmp_path: Path) -> None:
    given = registry.open_checkpoint(FOLDERS / "gptqmodel-act-order")
    settings = json.loads((FOLDERS / "gptqmodel-act-order" / "config.json").read_text())["quantization_config"]
    assert settings["desc_act"] is True
    assert any("act-order" in note for note in given.notes)
    for container in ("gptq", "awq", "compressed-tensors"):
        with pytest.raises(UnsupportedSpec, match="act-order"):
            registry.exporter(container).prepare(given, ExportOptions())
