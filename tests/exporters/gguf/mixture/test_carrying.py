"""Blocks of K-quants, IQ4 and MXFP4 in a file that is read and written again: carried as they are, never made anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quantkit.artifacts.publishing import publish
from quantkit.errors import UnsupportedSpec
from quantkit.exporters.gguf.container.file import read_gguf
from quantkit.exporters.gguf.mixture.file_types import MIXED
from quantkit.protocols import ExportOptions
from quantkit.tensors.block_options import BlockOptions
from tests.support.gguf_models import EXPORTER, dense, theirs
from tests.support.memory import tiny_config

CONFIG = tiny_config(
    vocab_size=320, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_key_value_heads=2, head_dim=64
)


def written(kind: str, path: Path, source: Path | None = None, **choices: object) -> Path:
    """`kind` of a dense model, or the file `source` written again."""
    if source is not None:
        publish(EXPORTER.prepare(EXPORTER.read(source), ExportOptions(**choices)), path)
        return path
    blocks = BlockOptions(pure=True) if kind == "mxfp4_moe" else None
    publish(EXPORTER.prepare(dense(CONFIG), ExportOptions(type=kind, blocks=blocks)), path)
    return path


@pytest.mark.parametrize("kind", MIXED)
def test_a_file_of_a_mixture_comes_back_block_for_block_under_its_own_number(kind: str, tmp_path: Path) -> None:
    one = written(kind, tmp_path / "one.gguf")
    first, second = read_gguf(one), read_gguf(written(kind, tmp_path / "two.gguf", one))
    assert list(first.tensors) == list(second.tensors)
    for name, info in first.tensors.items():
        assert second.tensors[name].type is info.type
        assert np.array_equal(first.rows(name, 0, info.shape[0]), second.rows(name, 0, info.shape[0])), name
    if kind not in ("q2_k_s", "q3_k_s", "mxfp4_moe"):  # of two layers, whose rules choose as other mixtures' do
        assert second.metadata["general.file_type"] == first.metadata["general.file_type"]


def test_another_type_would_quantize_twice_and_is_refused_by_name(tmp_path: Path) -> None:
    source = written("q4_k_m", tmp_path / "m.gguf")
    with pytest.raises(UnsupportedSpec, match=r"q_proj\.weight: it lies in q4_k blocks, and gguf's q8_0") as why:
        written("", tmp_path / "x.gguf", source, type="q8_0")
    assert "leave the type out" in str(why.value.hint)


def test_plain_types_hold_the_values_that_gguf_py_reads(tmp_path: Path) -> None:
    source = written("q4_k_m", tmp_path / "m.gguf")
    wide = written("", tmp_path / "f32.gguf", source, type="f32")
    (_, given), (_, found) = theirs(source), theirs(wide)
    assert all(np.array_equal(given[name], found[name]) for name in given)
