"""`sparse_config` travels with a native MiniCPM in every container, and a folded one says that it is left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.errors import UnsupportedModel
from quantkit.models.folding import NOT_CARRIED, folded
from quantkit.models.spec import SparseSpec
from quantkit.protocols import ExportOptions
from quantkit.tensors.schemes.affine_groups import AffineGroups
from tests.support.laws import output_name
from tests.support.memory import memory_checkpoint, tiny_config
from tests.support.quantized_models import linears, one_scale_each, quantized_model

SPARSE = {"kernel_size": 8, "kernel_stride": 4, "block_size": 8, "topk": 5, "window_size": 16, "use_nope": True}
CONFIG = tiny_config(
    sparse_config=SPARSE,
    hidden_size=256,
    intermediate_size=256,
    num_key_value_heads=4,
    tie_word_embeddings=False,
    vocab_size=128,
)
TERNARY = AffineGroups(bits=2, group_size=-1, ternary=True)
INT4_MODEL = quantized_model(CONFIG, linears(AffineGroups(bits=4, group_size=128)))


@pytest.mark.parametrize("name", registry.names("exporters"))
def test_it_is_carried(name: str, tmp_path: Path) -> None:
    model = one_scale_each(quantized_model(CONFIG, linears(TERNARY))) if name == "bitnet" else INT4_MODEL
    planned = registry.exporter(name).prepare(model, ExportOptions())
    found = registry.open_checkpoint(
        publish(planned, tmp_path / (output_name("out", planned) + (".gguf" if name == "gguf" else ""))).path
    )
    if found.spec.architecture == "minicpm":
        assert found.spec.sparse == SparseSpec(**SPARSE)  # type: ignore[arg-type]
    else:
        assert NOT_CARRIED in planned.notes


def test_a_folded_model_says_that_it_is_left_out() -> None:
    assert NOT_CARRIED in folded(memory_checkpoint(tiny_config(sparse_config=SPARSE))).notes
    assert NOT_CARRIED not in folded(memory_checkpoint(tiny_config())).notes


def test_what_is_not_understood_is_refused_before_anything_is_written() -> None:
    with pytest.raises(UnsupportedModel, match="'sink' is not understood"):
        memory_checkpoint(tiny_config(sparse_config={"sink": 4}))
