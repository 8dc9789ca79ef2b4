"""What is written is what llama-imatrix writes: names, order, padding, and all that was measured."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from quantkit.artifacts.publishing import publish
from quantkit.calibration.importance.measured import Importance
from quantkit.exporters.gguf.imatrix.reading import read_importance
from quantkit.exporters.gguf.imatrix.writing import planned_importance
from tests.support.gguf_models import dense
from tests.support.imatrix_files import gguf_matrix

NAMES = {f"model.layers.{i}.{part}.weight": f"blk.{i}.{name}.weight" for i in range(2) for part, name in (
    ("self_attn.q_proj", "attn_q"), ("self_attn.o_proj", "attn_output"), ("mlp.down_proj", "ffn_down"),
)}  # fmt: skip


def importance() -> Importance:
    squares = {name: np.arange(256 if "down" in name else 128, dtype=np.float32) / 7 + 1 for name in NAMES}
    return Importance(weights=tuple(NAMES), text="prose.txt", chunks=3, length=5, squares=lambda: squares)


def test_every_byte(tmp_path: Path) -> None:
    measured = importance()
    done = publish(planned_importance(dense(), measured), tmp_path / "i.gguf")
    sums = {NAMES[name]: values.tolist() for name, values in measured.squares().items()}
    assert done.path.read_bytes() == gguf_matrix(sums, 15, texts=["prose.txt"], chunks=3, size=5)
    assert done.size == done.path.stat().st_size


def test_it_is_read_back_by_ours_and_by_gguf_py(tmp_path: Path) -> None:
    measured = importance()
    path = publish(planned_importance(dense(), measured), tmp_path / "i.gguf").path
    found = read_importance(path)
    assert (found.texts, found.chunks) == (("prose.txt",), 3)
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    assert len(tensors) == 2 * len(NAMES)
    for name, values in measured.squares().items():
        assert np.array_equal(found.weights[NAMES[name]], values / np.float32(15))
        assert np.array_equal(tensors[f"{NAMES[name]}.in_sum2"], values)
        assert tensors[f"{NAMES[name]}.counts"].tolist() == [15]


def test_nothing_is_measured_for_a_plan() -> None:
    def squares() -> dict[str, np.ndarray]:
        raise AssertionError

    lazy = Importance(weights=tuple(NAMES), text="t", chunks=1, length=2, squares=squares)
    assert planned_importance(dense(), lazy).size > 6 * 512
