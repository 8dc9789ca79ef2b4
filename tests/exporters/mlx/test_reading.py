"""MLX folders of strangers, made by mlx-lm itself: what is read is what mlx computes with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit import registry
from quantkit.protocols import ExportOptions
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.schemes.offset_groups import OffsetGroups
from quantkit.tensors.views import QuantizedView
from tests.support.memory import memory_checkpoint, tiny_config
from tests.support.mlx_folders import converted, exported

pytestmark = pytest.mark.engine("mlx")

CONFIG = tiny_config(
    architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=2048, hidden_size=128, intermediate_size=256,
    num_hidden_layers=1, tie_word_embeddings=False, rope_theta=10000.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory, golden_model: Path) -> Path:
    """A tiny Llama with the golden model's tokenizer, which has as many tokens."""
    files = {path.name: path.read_bytes() for path in golden_model.glob("*token*")}
    model = memory_checkpoint(CONFIG, files=files)
    return exported(model, tmp_path_factory.mktemp("dense") / "hf", ExportOptions(type="f16"), "hf")


def mlx_values(folder: Path, name: str, how: dict[str, Any]) -> np.ndarray:
    """A weight as mlx dequantizes it, in float32."""
    import mlx.core as mx  # noqa: PLC0415 - wanted where the engine is

    arrays = mx.load(str(folder / "model.safetensors"))
    module = name.removesuffix(".weight")
    parts = [arrays.get(f"{module}.{part}") for part in ("weight", "scales", "biases")]
    wide = [part.astype(mx.float32) if part is not None and part.dtype == mx.float16 else part for part in parts]
    return np.array(mx.dequantize(*wide, **how).astype(mx.float32))


SETTINGS: dict[str, dict[str, Any]] = {
    "embed_tokens": {"bits": 4, "group_size": 64},
    "q_proj": {"bits": 3, "group_size": 32},
    "k_proj": {"bits": 4, "group_size": 32, "mode": "mxfp4"},
    "v_proj": {"bits": 4, "group_size": 16, "mode": "nvfp4"},
    "o_proj": {"bits": 5, "group_size": 128},
    "gate_proj": {"bits": 2, "group_size": 64},
    "up_proj": {"bits": 6, "group_size": 32},
    "down_proj": {"bits": 1, "group_size": 32},
    "lm_head": {"bits": 8, "group_size": 64},
}
"""Every width and mode that is read, each module with its own."""


@pytest.fixture(scope="module")
def mixed(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    predicate = f"lambda path, module: {SETTINGS}[path.split('.')[-1]]"
    out = tmp_path_factory.mktemp("mixed") / "out"
    return converted(dense, out, {"q_bits": 4, "q_group_size": 64}, predicate)


@pytest.mark.parametrize("module", SETTINGS)
def test_what_is_read_is_what_mlx_computes_with(module: str, mixed: Path) -> None:
    weights = registry.open_checkpoint(mixed).weights
    name = next(name for name in weights if f"{module}.weight" in name)
    view, how = weights[name], SETTINGS[module]
    assert isinstance(view, QuantizedView)
    tensor, wanted = view.read(), mlx_values(mixed, name, how)
    if "mode" in how:
        assert view.scheme == AffineGroups(bits=5, group_size=how["group_size"], scale_dtype="float32")
        assert view.stored_as == how["mode"]
        assert np.array_equal(tensor.dequantized(), wanted)
        return
    assert (max(2, how["bits"]), how["group_size"]) == (view.scheme.bits, view.scheme.group_size)
    assert int(tensor.codes.max()) == 2 ** how["bits"] - 1
    if how["bits"] > 2:  # there the zero point need not be a code
        assert isinstance(view.scheme, OffsetGroups)
    np.testing.assert_allclose(tensor.dequantized(), wanted, rtol=0, atol=2.0**-22)


def test_every_kind_of_code_goes_on_into_our_folder_unchanged(mixed: Path, tmp_path: Path) -> None:
    """The same numbers, stored in the same way; one bit in two."""
    checkpoint = registry.open_checkpoint(mixed)
    views = {name: view for name, view in checkpoint.weights.items() if isinstance(view, QuantizedView)}
    back = registry.open_checkpoint(exported(checkpoint, tmp_path / "ours")).weights
    for name, view in views.items():
        found = back[name]
        assert isinstance(found, QuantizedView)
        assert (found.scheme, found.stored_as) == (view.scheme, view.stored_as)
        assert found.read().numbers_digest() == view.read().numbers_digest()


def test_all_engines_agree_on_it(mixed: Path) -> None:
    agree(mixed)


def test_a_dense_folder_of_mlx_is_read(dense: Path, tmp_path: Path) -> None:
    folder = converted(dense, tmp_path / "out", {})
    checkpoint = registry.open_checkpoint(folder)
    assert checkpoint.format == "mlx"
    assert not checkpoint.holds_codes
    agree(folder)


def agree(folder: Path) -> None:
    """All three engines of an MLX folder predict alike."""
    ids = [1, 372, 45, 1900, 7, 7, 230, 88]
    rows = []
    for engine in ("reference", "mlx", "mlx-numpy"):
        with registry.runtime(engine).open(folder) as session:
            rows.append(session.logits(ids))
    for found in rows[1:]:
        np.testing.assert_allclose(found, rows[0], rtol=0, atol=2e-4)
    assert np.ptp(rows[0]) > 1


def test_a_conversion_of_a_minicpm_is_read_as_mlx_lm_computes_it(golden_model: Path, tmp_path: Path) -> None:
    """Its config says neither theta nor whether the head is the embedding, and mlx-lm's defaults are not OpenBMB's."""
    folder = converted(golden_model, tmp_path / "out", {"q_bits": 4, "q_group_size": 64})
    checkpoint = registry.open_checkpoint(folder)
    assert (checkpoint.spec.rope.theta, checkpoint.spec.tie_word_embeddings) == (1e6, False)
    assert [note for note in checkpoint.notes if "rope_theta" in note and "1000000" in note]
    assert "LongRoPE" in (registry.runtime("mlx").refuses(checkpoint) or "")
    import mlx.core as mx  # noqa: PLC0415 - wanted where the engine is
    from mlx_lm.utils import load_model  # noqa: PLC0415

    model, _ = load_model(folder)
    model.set_dtype(mx.float32)
    ids = [1, 372, 45, 1900, 7, 7, 230, 88]
    with registry.runtime("reference").open(folder) as oracle:
        wanted = oracle.logits(ids)
    np.testing.assert_allclose(np.array(model(mx.array([ids]))[0]), wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


def test_codes_of_a_stranger_go_on_into_our_folder_unchanged(dense: Path, tmp_path: Path) -> None:
    """mlx-lm's folder, read and written by us: every code, scale and bias byte for byte."""
    from safetensors.numpy import load_file  # noqa: PLC0415 - beside the engine

    folder = converted(dense, tmp_path / "theirs", {"q_bits": 4, "q_group_size": 64})
    ours = exported(registry.open_checkpoint(folder), tmp_path / "ours")
    one, other = (load_file(path / "model.safetensors") for path in (folder, ours))
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.dtype == other[name].dtype, name
        assert array.tobytes() == other[name].tobytes(), name
