"""One quantization run in every container that can hold it: the same codes, zero points and float16 scales.

Every type and target of every container in the registry is tried. It may refuse, or hold dense values; where it holds
integers, they are those of the run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.errors import UnsupportedSpec
from quantkit.models.checkpoint import Checkpoint
from quantkit.protocols import Exporter, ExportOptions
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.schemes.offset_groups import OffsetGroups
from quantkit.tensors.views import QuantizedView, Weight
from tests.support.memory import memory_checkpoint, tiny_config
from tests.support.runs import quantized

CONFIG = tiny_config(
    vocab_size=320, hidden_size=256, intermediate_size=512, num_hidden_layers=1, num_attention_heads=4,
    num_key_value_heads=4,
)  # fmt: skip
"""Wide enough for every kernel: rows are multiples of 256, columns of 128."""

SPECS = {
    "sym": AffineGroups(bits=4, group_size=128),
    "asym": AffineGroups(bits=4, group_size=128, symmetric=False),
    "four levels": AffineGroups(bits=2, group_size=128),
    "ternary": AffineGroups(bits=2, group_size=256, ternary=True),
}
HOLD = {
    "sym": {
        "awq:gemm",
        "compressed-tensors:pack-quantized",
        "gptq:v1",
        "gptq:v2",
        "gguf:q4_0",
        "marlin@cpm.cu",
        "marlin@ist",
        "mlx:affine",
        "mlx:affine-f16",
        "onnx:f16",
        "onnx:f32",
        "openvino:f16",
    },
    "asym": {
        "awq:gemm",
        "compressed-tensors:pack-quantized",
        "gptq:v2",
        "mlx:affine",
        "onnx:f16",
        "onnx:f32",
        "openvino:f16",
    },
    "four levels": {
        "compressed-tensors:pack-quantized",
        "gptq:v1",
        "gptq:v2",
        "gguf:q2_0",
        "gguf:q4_0",
        "mlx:affine",
        "mlx:affine-f16",
        "onnx:f16",
        "onnx:f32",
        "openvino:f16",
    },
    "ternary": {"gguf:tq2_0", "gguf:tq1_0", "gguf:q2_0", "gguf:q4_0", "openvino:f16"},
}
"""What must hold such a run; others may."""


@cache
def run(kind: str) -> Checkpoint:
    """The run, kept as its first reader found it."""
    checkpoint = quantized(memory_checkpoint(CONFIG), SPECS[kind], "rtn").checkpoint
    tensors = {name: view.read() for name, view in checkpoint.weights.items() if isinstance(view, QuantizedView)}
    assert len(tensors) == 7
    arrays = {name: tensors.get(name) or view.read() for name, view in checkpoint.weights.items()}
    return memory_checkpoint(CONFIG, arrays)


@cache
def ternary_run() -> Checkpoint:
    """A run of ternary weights in groups of 128, all groups of a matrix with one scale, as BitNet's layout has them."""
    made = quantized(memory_checkpoint(CONFIG), AffineGroups(bits=2, group_size=128, ternary=True), "rtn").checkpoint
    arrays: dict[str, np.ndarray | QuantizedTensor] = {}
    for name, view in made.weights.items():
        weight = view.read()
        if isinstance(weight, QuantizedTensor):
            scale = np.full_like(weight.scale, np.median(weight.scale))
            weight = QuantizedTensor(weight.scheme, weight.codes, {"scale": scale, "zero": weight.zero})
        arrays[name] = weight
    return memory_checkpoint(CONFIG, arrays)


def offers() -> list[str]:
    """CONTAINER:TYPE@TARGET of everything that can be asked for; without a type or target where there is none."""
    containers = [registry.exporter(name) for name in registry.names("exporters")]
    return [
        container.name + type_ + target
        for container in containers
        for type_ in [f":{type_}" for type_ in container.types] or [""]
        for target in [f"@{target}" for target in container.targets] or [""]
    ]


def wider_offers() -> list[str]:
    """`offers` with /BITS behind those that store codes wider than they are."""
    widths = {container.name: container.widths for container in map(registry.exporter, registry.names("exporters"))}
    return [f"{offer}/{bits}" for offer in offers() for bits in widths[re.split("[:@]", offer)[0]]]


def read_offer(offer: str) -> tuple[Exporter, ExportOptions]:
    offer, _, bits = offer.partition("/")
    asked, _, target = offer.partition("@")
    name, _, type_ = asked.partition(":")
    chosen = ExportOptions(type=type_ or None, target=target or None, bits=int(bits) if bits else None)
    return registry.exporter(name), chosen


def in_container(checkpoint: Checkpoint, offer: str, folder: Path) -> dict[str, QuantizedTensor]:
    """The integer weights of what `offer` wrote, empty when it refuses, as some do at the codes, or holds none."""
    exporter, options = read_offer(offer)
    try:
        publish(exporter.prepare(checkpoint, options), folder / "out-int4")
    except UnsupportedSpec:
        return {}
    weights = exporter.read(folder / "out-int4").weights
    return {name: view.read() for name, view in weights.items() if isinstance(view, QuantizedView)}


@cache
def held(kind: str, offer: str) -> dict[str, QuantizedTensor]:
    with TemporaryDirectory() as folder:
        found = in_container(run(kind), offer, Path(folder))
    return {name: tensor for name, tensor in found.items() if isinstance(run(kind).weights[name], QuantizedView)}


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("offer", offers())
def test_a_container_holds_the_numbers_of_the_run_or_none(offer: str, kind: str) -> None:
    found = held(kind, offer)
    if not found:
        assert offer not in HOLD[kind]
        return
    given = {name: view.read() for name, view in run(kind).weights.items() if isinstance(view, QuantizedView)}
    assert found.keys() == given.keys()
    for name, tensor in given.items():
        back = found[name]
        times = back.scale.shape[1] // tensor.scale.shape[1]
        assert back.scale.dtype == np.float16, name
        assert np.array_equal(back.scale, tensor.scale.repeat(times, axis=1)), name
        if offer in HOLD[kind]:
            assert np.array_equal(back.zero, tensor.zero.repeat(times, axis=1)), name
        if offer in HOLD[kind] or isinstance(back.scheme, OffsetGroups):
            assert np.array_equal(back.codes, tensor.codes), name
        if isinstance(back.scheme, OffsetGroups):  # scale * zero point, rounded to float16 and nothing else
            wanted = (tensor.scale.astype(np.float32) * -tensor.zero.astype(np.float32)).astype(np.float16)
            assert np.array_equal(back.arrays["offset"], wanted.repeat(times, axis=1)), name
        else:
            assert np.array_equal(back.dequantized(), tensor.dequantized()), name


@pytest.mark.parametrize(
    ("kind", "first", "second"), [(kind, *pair) for kind in SPECS for pair in product(sorted(HOLD[kind]), repeat=2)]
)
def test_from_container_to_container_nothing_changes(kind: str, first: str, second: str, tmp_path: Path) -> None:
    exporter, options = read_offer(first)
    publish(exporter.prepare(run(kind), options), tmp_path / "first-int4")
    there = in_container(registry.open_checkpoint(tmp_path / "first-int4"), second, tmp_path)
    if first == "gguf:q4_0" and second.startswith("marlin"):
        assert there == {}, "a plan reads no scales, so it cannot know that four groups of 32 are one of 128"
        return
    straight = held(kind, second)
    for weight, tensor in straight.items():
        for part in ("codes", "scale", "zero"):
            assert np.array_equal(getattr(there[weight], part), getattr(tensor, part)), f"{weight}: {part}"


HOLD_TERNARY = {*HOLD["sym"], "bitnet:autobitlinear", "gptq:v1/4", "compressed-tensors:pack-quantized/4"}
"""What must hold ternary weights; others may."""
KEEP_TERNARY = ("bitnet:autobitlinear", "compressed-tensors:pack-quantized", "gguf:q4_0", "openvino:f16")
"""What knows afterwards that they are."""


def digests(weights: Mapping[str, Weight] | Mapping[str, QuantizedTensor]) -> dict[str, str]:
    read = {name: view.read() if isinstance(view, QuantizedView) else view for name, view in weights.items()}
    return {name: tensor.numbers_digest() for name, tensor in read.items() if isinstance(tensor, QuantizedTensor)}


@pytest.mark.parametrize("offer", [*offers(), *wider_offers()])
def test_ternary_weights_have_one_digest_in_every_container(offer: str, tmp_path: Path) -> None:
    """Whatever number a code has there, and however wide it is; where there are dense values, they are the same."""
    model = ternary_run()
    found = in_container(model, offer, tmp_path)
    assert found or offer not in HOLD_TERNARY
    wanted = digests(model.weights)
    assert len(wanted) == 7
    linears = {name: tensor for name, tensor in found.items() if name in wanted}
    assert not found or digests(linears) == wanted


@pytest.mark.parametrize("second", sorted(HOLD_TERNARY))
@pytest.mark.parametrize("first", sorted(HOLD_TERNARY))
def test_ternary_weights_go_from_container_to_container(first: str, second: str, tmp_path: Path) -> None:
    exporter, options = read_offer(first)
    publish(exporter.prepare(ternary_run(), options), tmp_path / "first-int4")
    there = digests(in_container(registry.open_checkpoint(tmp_path / "first-int4"), second, tmp_path))
    if first == "gguf:q4_0" and second.startswith("marlin"):
        assert there == {}, "it quantizes the embedding, which is dense here"
        return
    if second.startswith("bitnet") and first not in KEEP_TERNARY:
        assert there == {}, "there they are no ternary codes any more"
        return
    wanted = digests(ternary_run().weights)
    assert {name: there.get(name) for name in wanted} == wanted
