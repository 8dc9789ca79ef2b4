"""What tensors may become, with the bytes that gguf-py finds in the finished file."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantkit import registry
from quantkit.exporters.gguf.types.schemes import SCHEMES
from quantkit.protocols import ExportOptions
from quantkit.tensors.block_options import BlockOptions
from tests.support.tiny import write_tiny_checkpoint

gguf = pytest.importorskip("gguf")

REFERENCE = ExportOptions(blocks=BlockOptions(algorithm="reference"))


@pytest.mark.parametrize("intermediate", [512, 320])
@pytest.mark.parametrize("number", [0, 3, -1])
def test_a_choice_is_what_another_reader_finds(number: int, intermediate: int, tmp_path: Path) -> None:
    exporter = registry.exporter("gguf")
    model = registry.open_checkpoint(write_tiny_checkpoint(tmp_path / "m", layers=1, intermediate=intermediate))
    found = exporter.candidates(model, REFERENCE, ())
    chosen = {name: own[number] for name, own in found.items()}
    options = exporter.choosing(model, REFERENCE, {name: one.type for name, one in chosen.items()})
    path = tmp_path / "x.gguf"
    with path.open("wb") as file:
        for unit in exporter.prepare(model, options).files[0].units:
            for buffer in unit.produce():
                file.write(buffer)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    embedding = tensors["token_embd.weight"]
    assert embedding.tensor_type.name.lower() == chosen["model.embed_tokens.weight"].type
    matrices = sorted(int(tensor.n_bytes) for tensor in tensors.values() if len(tensor.shape) > 1)
    assert [-(-nbytes // 32) * 32 for nbytes in matrices] == sorted(one.nbytes for one in chosen.values())
    down = chosen["model.layers.0.mlp.down_proj.weight"]
    assert down.input_run == (256 if "k" in down.type or "xs" in down.type else 32)
    assert intermediate % 256 == 0 or down.input_run == 32


def test_all_types_that_a_solver_has_are_tried_smallest_first(tiny_checkpoint) -> None:
    own = registry.exporter("gguf").candidates(registry.open_checkpoint(tiny_checkpoint), REFERENCE, ())
    for candidates in own.values():
        assert {one.type for one in candidates} == {block.name.lower() for block in SCHEMES}
        assert [one.nbytes for one in candidates] == sorted(one.nbytes for one in candidates)
