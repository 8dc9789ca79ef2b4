"""K-quants of a GGUF file in containers that have a float32 scale for every group: the same numbers, or a refusal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quantkit import export, registry
from quantkit.errors import UnsupportedSpec
from quantkit.exporters._plain_scales import with_plain_scales
from quantkit.models.checkpoint import Checkpoint
from quantkit.protocols import ExportOptions
from quantkit.tensors.block_options import BlockOptions
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.schemes.offset_groups import OffsetGroups
from quantkit.tensors.views import QuantizedView
from tests.support.gguf_models import LLAMA, dense

CONFIG = {**LLAMA, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1, "head_dim": 64}
HELD: dict[str, tuple[str, ...]] = {
    "q6_k": ("compressed-tensors", "onnx", "openvino"),
    "q3_k_m": ("compressed-tensors", "onnx", "openvino"),
    "q4_k_m": ("mlx",),
    "q5_k_m": ("mlx",),
    "q2_k": (),
    "iq4_xs": (),
    "iq4_nl": (),
    "mxfp4_moe": (),
}
"""Types, and the containers that hold them exactly."""
EVERY = ("compressed-tensors", "gptq", "awq", "marlin", "mlx", "onnx", "openvino", "bitnet")


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """A file of each type, every matrix of it."""
    folder, blocks = tmp_path_factory.mktemp("k"), BlockOptions(pure=True)
    source = dense(CONFIG)
    return {
        kind: registry.open_checkpoint(
            export("gguf", source, folder / f"{kind}.gguf", ExportOptions(type=kind, blocks=blocks)).path
        )
        for kind in HELD
    }


def numbers(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    values = {name: weight.read() for name, weight in checkpoint.weights.items()}
    return {name: v.astype(np.float32) if isinstance(v, np.ndarray) else v.dequantized() for name, v in values.items()}


@pytest.mark.parametrize(("kind", "container"), [(kind, name) for kind, names in HELD.items() for name in names])
def test_a_container_that_holds_the_scales_holds_the_numbers(
    kind: str, container: str, opened: dict[str, Checkpoint], tmp_path: Path
) -> None:
    source = opened[kind]
    back = registry.open_checkpoint(export(container, source, tmp_path / "out", ExportOptions()).path)
    wanted, found = numbers(source), numbers(back)
    assert all(np.array_equal(found[name], values) for name, values in wanted.items())
    assert any(isinstance(weight, QuantizedView) for weight in back.weights.values())


@pytest.mark.parametrize(
    ("kind", "container"), [(kind, name) for kind in HELD for name in EVERY if name not in HELD[kind]]
)
def test_all_others_refuse_a_tensor_by_name_and_say_what_takes_it(
    kind: str, container: str, opened: dict[str, Checkpoint]
) -> None:
    with pytest.raises(UnsupportedSpec, match=r"model\.(embed_tokens|layers\.0)\.") as refusal:
        registry.exporter(container).prepare(opened[kind], ExportOptions())
    assert refusal.value.hint


@pytest.mark.parametrize("kind", HELD)
def test_a_scale_for_every_group_is_the_same_numbers_under_the_same_digest(
    kind: str, opened: dict[str, Checkpoint]
) -> None:
    plain = with_plain_scales(opened[kind])
    for name, weight in opened[kind].weights.items():
        other = plain.weights[name]
        if not isinstance(weight, QuantizedView) or getattr(weight.scheme, "table", ""):
            assert other is weight
            continue
        assert isinstance(other, QuantizedView)
        assert isinstance(other.scheme, (AffineGroups, OffsetGroups))
        assert other.read().numbers_digest() == weight.read().numbers_digest()
        assert np.array_equal(other.read().dequantized(), weight.read().dequantized())


@pytest.mark.engine("onnxruntime")
def test_onnxruntime_computes_with_q6_k(opened: dict[str, Checkpoint], tmp_path: Path) -> None:
    out = export("onnx", opened["q6_k"], tmp_path / "out", ExportOptions()).path
    rows = []
    for name, path in (("onnxruntime", out), ("reference", opened["q6_k"].path)):
        with registry.runtime(name).open(path) as session:
            logits = session.next_logits([1, 300, 400]).astype(np.float64)
            rows.append(logits - np.log(np.exp(logits).sum()))
    assert np.abs(rows[0] - rows[1]).max() < 6e-2
