"""`--bits`: narrow symmetric codes in more bits, wherever it is offered; what is said, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.errors import BadOption, UnsupportedSpec
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import Role, TensorSlot
from quantkit.protocols import ExportOptions
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView
from tests.support.memory import tiny_config
from tests.support.quantized_models import linears, quantized_model

CONFIG = tiny_config(hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_key_value_heads=4)
TERNARY = AffineGroups(bits=2, group_size=128, ternary=True)
INT3, INT8 = AffineGroups(bits=3, group_size=128), AffineGroups(bits=8, group_size=128)
ASYM3 = replace(INT3, symmetric=False)
WIDTHS = {name: registry.exporter(name).widths for name in registry.names("exporters")}
OFFERED = [(name, bits) for name, widths in WIDTHS.items() for bits in widths]
Q = "model.layers.0.self_attn.q_proj.weight"


def in_container(model: Checkpoint, name: str, options: ExportOptions, folder: Path) -> dict[str, QuantizedView]:
    """The quantized weights of what is written."""
    exporter = registry.exporter(name)
    publish(exporter.prepare(model, options), folder / "out-quant")
    back = exporter.read(folder / "out-quant")
    return {name: view for name, view in back.weights.items() if isinstance(view, QuantizedView)}


def test_what_each_container_offers() -> None:
    assert {name: widths for name, widths in WIDTHS.items() if widths} == {
        "awq": (4,), "compressed-tensors": (2, 3, 4, 5, 6, 7, 8), "gptq": (2, 3, 4, 8), "marlin": (4,),
        "mlx": (2, 3, 4, 5, 6, 8), "onnx": (4, 8), "openvino": (4, 8),
    }  # fmt: skip


@pytest.mark.parametrize(("name", "bits"), OFFERED)
@pytest.mark.parametrize("scheme", [TERNARY, INT3], ids=str)
def test_codes_are_as_wide_as_was_asked_and_the_numbers_stay(
    scheme: AffineGroups, name: str, bits: int, tmp_path: Path
) -> None:
    model = quantized_model(CONFIG, linears(scheme))
    back = in_container(model, name, ExportOptions(bits=bits), tmp_path)
    for weight, view in back.items():
        given = model.weights[weight]
        assert isinstance(given, QuantizedView)
        assert view.scheme.bits == min(width for width in WIDTHS[name] if width >= max(scheme.bits, bits))
        assert view.read().numbers_digest() == given.read().numbers_digest(), weight
    assert registry.open_checkpoint(tmp_path / "out-quant").format == name


@pytest.mark.parametrize(
    ("name", "scheme", "width"),
    [
        ("gptq", TERNARY, 2),
        ("gptq", INT3, 3),
        ("awq", TERNARY, 4),
        ("awq", INT3, 4),
        ("marlin", TERNARY, 4),
        ("marlin", replace(TERNARY, ternary=False), 4),
        ("compressed-tensors", TERNARY, 2),
        ("compressed-tensors", INT3, 3),
        ("openvino", TERNARY, 2),
        ("openvino", INT3, 4),
    ],
)
def test_without_a_width_codes_are_as_narrow_as_the_container_has_them(
    name: str, scheme: AffineGroups, width: int
) -> None:
    model = quantized_model(CONFIG, linears(scheme))
    planned = registry.exporter(name).prepare(model, ExportOptions())
    told = [note for note in planned.notes if note.endswith(f"stored as {width} bits, the numbers are the same")]
    changed = width != scheme.bits or (scheme.ternary and name not in ("compressed-tensors", "openvino"))
    assert told == ([f"{scheme}: its codes are stored as {width} bits, the numbers are the same"] if changed else [])
    assert len(planned.stored) == (14 if changed else 0)
    assert {view.scheme.bits for view in planned.stored.values()} <= {width}
    assert "bits" not in planned.options


def mixed(slot: TensorSlot) -> AffineGroups | None:
    return INT8 if slot.role is Role.DOWN else linears(TERNARY)(slot)


@pytest.mark.parametrize("name", ["compressed-tensors", "gptq"])
def test_wider_codes_stay_and_are_told(name: str, tmp_path: Path) -> None:
    model = quantized_model(CONFIG, mixed)
    planned = registry.exporter(name).prepare(model, ExportOptions(bits=4))
    assert planned.options["bits"] == 4
    assert "2 weights (model.layers.0.mlp.down_proj.weight, int8 g128 sym, ...) keep the bits" in " ".join(
        planned.notes
    )
    back = in_container(model, name, ExportOptions(bits=4), tmp_path)
    assert {str(view.scheme) for view in back.values()} == {"int4 g128 sym", "int8 g128 sym"}


@pytest.mark.parametrize("name", ["compressed-tensors", "gptq"])
def test_asymmetric_codes_are_refused_by_name_where_more_bits_are_asked_for(name: str) -> None:
    model = quantized_model(CONFIG, linears(ASYM3))
    registry.exporter(name).prepare(model, ExportOptions())
    registry.exporter(name).prepare(model, ExportOptions(bits=3))
    with pytest.raises(UnsupportedSpec, match=f"{Q}: {name} stores symmetric codes .* not int3 g128 asym") as refusal:
        registry.exporter(name).prepare(model, ExportOptions(bits=4))
    assert refusal.value.hint == "leave --bits out"


@pytest.mark.parametrize("name", ["awq", "marlin"])
@pytest.mark.parametrize("scheme", [ASYM3, INT8], ids=str)
def test_where_there_are_4_bits_only_others_are_refused_as_ever(name: str, scheme: AffineGroups) -> None:
    model = quantized_model(CONFIG, linears(scheme))
    for options in (ExportOptions(), ExportOptions(bits=4)):
        with pytest.raises(UnsupportedSpec, match=f"{Q}: {name} holds .*4 bits only"):
            registry.exporter(name).prepare(model, options)


@pytest.mark.parametrize("name", WIDTHS)
def test_a_width_that_a_container_does_not_have_is_refused(name: str) -> None:
    model = quantized_model(CONFIG, linears(INT3))
    for bits in {0, 1, 2, 3, 4, 5, 8, 9} - set(WIDTHS[name]):
        with pytest.raises(BadOption, match=f"{name} has no") as refusal:
            registry.exporter(name).prepare(model, ExportOptions(bits=bits))
        assert refusal.value.hint


def test_what_gptq_has_no_codes_for_has_a_way_out(tmp_path: Path) -> None:
    model = quantized_model(CONFIG, linears(replace(INT3, bits=6)))
    with pytest.raises(UnsupportedSpec, match="holds 2, 3, 4 and 8 bits") as refusal:
        registry.exporter("gptq").prepare(model, ExportOptions())
    assert refusal.value.hint == "store it in wider codes with --bits 8"
    back = in_container(model, "gptq", ExportOptions(bits=8), tmp_path)
    assert {str(view.scheme) for view in back.values()} == {"int8 g128 sym"}
