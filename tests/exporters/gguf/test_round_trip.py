"""What reading a GGUF file of ours restores: the weights, the config and the tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quantkit.errors import InconsistentCheckpoint
from quantkit.exporters._hf_config import native_config
from quantkit.exporters.gguf.container.file import read_gguf
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import TensorView
from quantkit.text.vocabulary import read_vocabulary
from tests.support.gguf_models import EXPORTER, K_PROJ, LLAMA, Q_PROJ, UP_PROJ, dense, quantized, write


def test_reading_and_writing_again_gives_the_same_bytes(tmp_path: Path, tokenizer_files: dict[str, bytes]) -> None:
    for number, (source, kind) in enumerate(
        [
            (dense(files=tokenizer_files), "f16"),
            (dense(files=tokenizer_files), "q4_0"),
            (quantized(AffineGroups(bits=4, group_size=128), files=tokenizer_files), None),
            (quantized(AffineGroups(bits=3, group_size=64, symmetric=False), files=tokenizer_files), None),
        ]
    ):
        one = write(source, tmp_path / f"{number}.gguf", kind)
        back = EXPORTER.read(one)
        two = write(back, tmp_path / f"{number}-again.gguf", kind if kind == "f16" else None)
        first, second = read_gguf(one), read_gguf(two)
        assert {**first.metadata, "quantkit.quantization": 0}.keys() == {
            **second.metadata,
            "quantkit.quantization": 0,
        }.keys()
        for name, info in first.tensors.items():
            rows = info.shape[0]
            assert second.tensors[name].type is info.type
            assert np.array_equal(first.rows(name, 0, rows), second.rows(name, 0, rows)), name


def test_the_config_and_the_tokenizer_come_back(tmp_path: Path, tokenizer_files: dict[str, bytes]) -> None:
    source = dense(files=tokenizer_files)
    back = EXPORTER.read(write(source, tmp_path / "m.gguf"))
    assert back.spec == source.spec
    assert back.config == native_config(source)
    assert native_config(back) == native_config(source)
    assert read_vocabulary(back) == read_vocabulary(source)
    assert back.inputs == (tmp_path / "m.gguf",)
    assert set(back.files) == {*tokenizer_files, "tokenizer.json"}


def test_views_read_any_rows_in_the_models_order(tmp_path: Path) -> None:
    source = dense(dtype=np.float16)
    back = EXPORTER.read(write(source, tmp_path / "m.gguf", "f16"))
    for name in (Q_PROJ, K_PROJ, UP_PROJ, "model.norm.weight"):
        given, found = source.weights[name], back.weights[name]
        assert isinstance(given, TensorView)
        assert isinstance(found, TensorView)
        for start, stop in ((0, 1), (5, 39), (31, 33), (60, 64)):
            wanted = given.fetch(start, stop)
            assert np.array_equal(found.fetch(start, stop), wanted.astype(found.dtype)), (name, start, stop)


def test_a_config_that_contradicts_the_other_keys_is_refused(tmp_path: Path) -> None:
    """The same file says embedding_scale 12 and, in quantkit's key, scale_emb 13."""
    source = write(
        dense(LLAMA | {"architectures": ["MiniCPMForCausalLM"], "model_type": "minicpm"}), tmp_path / "m.gguf"
    )
    data = source.read_bytes()
    source.write_bytes(data.replace(b'"scale_emb":12', b'"scale_emb":13'))
    with pytest.raises(InconsistentCheckpoint, match="scale_emb"):
        EXPORTER.read(source)
