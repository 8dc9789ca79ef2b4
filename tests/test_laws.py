"""Every plug-in in the registry against its laws; a new file in a room is found and held to them by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import count, product
from pathlib import Path

import numpy as np
import pytest

from quantkit import discovery, registry
from quantkit.artifacts.publishing import publish
from quantkit.errors import UnsupportedModel, UnsupportedSpec
from quantkit.files.planned_files import PlannedArtifact, blob
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import ROOM, Role, TensorSlot, architecture
from quantkit.protocols import Exporter, ExportOptions
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView
from tests.support.laws import (
    check_damage,
    check_exact_method,
    check_exporter,
    check_method,
    check_runtime,
    output_name,
)
from tests.support.memory import tiny_config
from tests.support.quantized_models import Choice, fake_quantized, linears, one_scale_each, quantized_model

MINICPM = tiny_config(
    vocab_size=2048, hidden_size=128, intermediate_size=256, num_hidden_layers=2, eos_token_id=[2, 2040]
)  # fmt: skip
WIDE = {**MINICPM, "hidden_size": 256, "num_key_value_heads": 4}
"""Every layer is at least 256 x 256, as some kernels need."""
LLAMA = {**MINICPM, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": False}
TOKENIZER = Path(__file__).resolve().parent.parent / "golden" / "model"


def model(config: dict[str, object], choose: Choice) -> Checkpoint:
    """A random model with the tokenizer of the golden one, whose vocabulary it has."""
    return quantized_model(config, choose, files={path.name: path.read_bytes() for path in TOKENIZER.glob("*token*")})


def dense(slot: TensorSlot) -> None:
    """Quantize nothing."""


TERNARY = AffineGroups(bits=2, group_size=-1, ternary=True)
MIXED = {
    Role.Q: AffineGroups(bits=4, group_size=32),
    Role.K: AffineGroups(bits=4, group_size=32),
    Role.DOWN: AffineGroups(bits=8, group_size=-1),
    Role.UP: AffineGroups(bits=2, group_size=64, symmetric=False),
    Role.LM_HEAD: AffineGroups(bits=8, group_size=32),
}
TERNARY_MIX = {
    **dict.fromkeys((Role.Q, Role.K, Role.V), AffineGroups(bits=2, group_size=64, ternary=True)),
    Role.O: AffineGroups(bits=2, group_size=128, ternary=True, scale_dtype="bfloat16"),
    Role.DOWN: AffineGroups(bits=4, group_size=64),
    Role.LM_HEAD: AffineGroups(bits=2, group_size=64, ternary=True),
}
SOURCES: dict[str, Callable[[], Checkpoint]] = {
    "dense": lambda: model(MINICPM, dense),
    "dense-llama": lambda: model(LLAMA, dense),
    "int4-g128-sym": lambda: model(MINICPM, linears(AffineGroups(bits=4, group_size=128))),
    "int4-g128-wide": lambda: model(WIDE, linears(AffineGroups(bits=4, group_size=128))),
    "int4-g32-asym": lambda: model(MINICPM, linears(AffineGroups(bits=4, group_size=32, symmetric=False))),
    "int4-g128-bf16-scales": lambda: model(
        MINICPM, linears(AffineGroups(bits=4, group_size=128, scale_dtype="bfloat16"))
    ),
    "int8-row-sym": lambda: model(MINICPM, linears(AffineGroups(bits=8, group_size=-1))),
    "int3-g64-sym": lambda: model(MINICPM, linears(AffineGroups(bits=3, group_size=64))),
    "ternary-g64": lambda: model(MINICPM, linears(AffineGroups(bits=2, group_size=64, ternary=True))),
    "ternary-row-wide": lambda: model(WIDE, linears(TERNARY)),
    "ternary-one-scale": lambda: one_scale_each(
        model(WIDE, linears(AffineGroups(bits=2, group_size=128, ternary=True)))
    ),
    "ternary-mixed-llama": lambda: model(LLAMA, lambda slot: TERNARY_MIX.get(slot.role)),
    "int3-g64-asym": lambda: model(MINICPM, linears(AffineGroups(bits=3, group_size=64, symmetric=False))),
    "mixed-llama": lambda: model(LLAMA, lambda slot: MIXED.get(slot.role)),
    "int2-g64-sym": lambda: model(MINICPM, linears(AffineGroups(bits=2, group_size=64))),
    "dense-ternary": lambda: fake_quantized(model(WIDE, linears(TERNARY))),
    "everything-int8": lambda: model(LLAMA, lambda slot: MIXED[Role.LM_HEAD] if len(slot.shape) == 2 else None),
}
source = cache(lambda name: SOURCES[name]())


Offer = tuple[str, str | None, str | None]
"""Container, type and target."""


def offers() -> list[Offer]:
    """Every container with every type and target that it offers, and with its default."""
    containers = [registry.exporter(name) for name in registry.names("exporters")]
    return [
        (container.name, kind, target)
        for container in containers
        for target in (container.targets or (None,))
        for kind in (None, *container.types)
    ]


def shown(offer: tuple[str | None, ...]) -> str:
    return "-".join(part for part in offer if part is not None)


ARCHITECTURES = [(name, "native") for name in SOURCES] + [
    (name, "llama")
    for name in (
        "dense",
        "int4-g128-sym",
        "int4-g128-wide",
        "int4-g32-asym",
        "ternary-g64",
        "ternary-row-wide",
        "ternary-one-scale",
    )
]


@pytest.mark.parametrize(("name", "arch"), ARCHITECTURES)
@pytest.mark.parametrize("offer", offers(), ids=shown)
def test_an_exporter_holds_its_laws(offer: Offer, name: str, arch: str, tmp_path: Path) -> None:
    exporter, kind, target = offer
    options = ExportOptions(type=kind, arch=arch, target=target)
    check_exporter(registry.exporter(exporter), source(name), options, tmp_path)


WIDTHS = [(name, bits) for name in registry.names("exporters") for bits in registry.exporter(name).widths]


@pytest.mark.parametrize("name", ["int3-g64-sym", "ternary-row-wide", "ternary-mixed-llama"])
@pytest.mark.parametrize(("exporter", "bits"), WIDTHS)
def test_an_exporter_holds_its_laws_with_wider_codes(exporter: str, bits: int, name: str, tmp_path: Path) -> None:
    check_exporter(registry.exporter(exporter), source(name), ExportOptions(bits=bits), tmp_path)


@pytest.mark.parametrize("offer", [offer for offer in offers() if offer[1] is None], ids=shown)
def test_damage_to_an_artifact_is_found(offer: Offer, tmp_path: Path) -> None:
    """With the first of the models that the container takes; there must be one."""
    exporter, _, target = offer
    for name in SOURCES:
        try:
            planned = registry.exporter(exporter).prepare(source(name), ExportOptions(target=target))
        except UnsupportedSpec:
            continue
        artifact = tmp_path / output_name("artifact", planned)
        publish(planned, artifact)
        check_damage(artifact)
        return
    pytest.fail(f"{exporter} takes none of {', '.join(SOURCES)}")


LOADS = [(name, container) for name in registry.names("runtimes") for container in registry.runtime(name).formats]


@pytest.mark.parametrize(("name", "container"), LOADS)
def test_a_runtime_holds_its_laws(name: str, container: str, tmp_path: Path) -> None:
    """With the first of the models that the container holds and the engine takes; there must be one."""
    runtime = registry.runtime(name)
    missing = runtime.missing()
    if missing is not None:
        pytest.skip(f"{name} is not installed: {missing}")
    for number, (model_name, arch) in enumerate(product(SOURCES, ("native", "llama"))):
        options = ExportOptions(arch=arch)
        try:
            planned = registry.exporter(container).prepare(source(model_name), options)
            artifact = tmp_path / output_name(str(number), planned)
            publish(planned, artifact)
        except UnsupportedSpec:
            continue
        if runtime.refuses(registry.open_checkpoint(artifact)) is None:
            check_runtime(runtime, artifact)
            return
    pytest.fail(f"{name} takes none of {', '.join(SOURCES)} as {container}")


REFERENCE_ALONE = ("sala",)
"""Architectures whose layers nothing but the reference computes; they say so."""


@pytest.mark.parametrize("name", discovery.names(ROOM))
def test_an_architecture_follows_the_protocol(name: str) -> None:
    family = architecture(name)
    assert family.name == name
    assert len(family.summary.splitlines()) == 1
    if name in REFERENCE_ALONE:
        with pytest.raises(UnsupportedModel):
            _ = family.groups
        return
    roles = [role for group in family.groups for role in group.roles]
    assert len(set(roles)) == len(roles)
    assert set(roles) < set(family.layer_names)
    assert {group.writer for group in family.groups} <= set(roles)


@pytest.mark.parametrize("name", [name for name in registry.names("methods") if name != "exact"])
def test_a_method_holds_its_laws(name: str) -> None:
    check_method(registry.method(name))


def test_the_method_that_chooses_nothing_gives_back_what_lies_on_its_grid() -> None:
    check_exact_method(registry.method("exact"))


class Sabotaged:
    """An exporter whose `read` or `prepare` was spoilt; everything else is the honest one's."""

    def __init__(self, honest: Exporter, **spoilt: object) -> None:
        self.honest, self.spoilt = honest, spoilt

    def __getattr__(self, name: str) -> object:
        return self.spoilt.get(name) or getattr(self.honest, name)


def changed(checkpoint: Checkpoint, **parts: Callable[[QuantizedTensor], np.ndarray]) -> Checkpoint:
    """`checkpoint` whose last quantized weight has its codes or some of its arrays replaced."""
    name = [name for name, weight in checkpoint.weights.items() if isinstance(weight, QuantizedView)][-1]
    view = checkpoint.weights[name]
    assert isinstance(view, QuantizedView)
    tensor = view.read()
    made = {part: change(tensor) for part, change in parts.items()}
    other = QuantizedTensor(tensor.scheme, made.pop("codes", tensor.codes), {**tensor.arrays, **made})
    return replace(checkpoint, weights={**checkpoint.weights, name: replace(view, read=lambda: other)})


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"codes": lambda tensor: tensor.codes ^ 1}, "codes differ"),
        ({"scale": lambda tensor: np.nextafter(tensor.scale, np.float16(1))}, "scales differ"),
        ({"zero": lambda tensor: tensor.zero ^ 1}, "zero points differ"),
    ],
)
def test_the_laws_catch_a_reader_that_returns_something_else(arrays, complaint, tmp_path: Path) -> None:
    honest = registry.exporter("compressed-tensors")
    liar = Sabotaged(honest, read=lambda path: changed(honest.read(path), **arrays))
    with pytest.raises(AssertionError, match=complaint):
        check_exporter(liar, source("int4-g32-asym"), ExportOptions(), tmp_path)


def test_the_laws_catch_a_writer_whose_bytes_differ_between_runs(tmp_path: Path) -> None:
    honest, runs = registry.exporter("compressed-tensors"), count()

    def prepare(checkpoint: Checkpoint, options: ExportOptions) -> PlannedArtifact:
        planned = honest.prepare(checkpoint, options)
        return replace(planned, files=(*planned.files, blob("run.txt", b"%d" % next(runs))))

    with pytest.raises(AssertionError, match="different bytes"):
        check_exporter(Sabotaged(honest, prepare=prepare), source("int4-g32-asym"), ExportOptions(), tmp_path)


def test_the_laws_catch_a_refusal_without_a_reason(tmp_path: Path) -> None:
    def prepare(checkpoint: Checkpoint, options: ExportOptions) -> PlannedArtifact:
        raise UnsupportedSpec("no")

    with pytest.raises(AssertionError, match="no"):
        check_exporter(Sabotaged(registry.exporter("hf"), prepare=prepare), source("dense"), ExportOptions(), tmp_path)
