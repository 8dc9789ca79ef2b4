"""mxfp4 and nvfp4: every code and scale with mlx's own arithmetic as judge, and which integer codes they hold."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from quantkit import registry
from quantkit.errors import NonFiniteValues, UnsupportedSpec
from quantkit.exporters.mlx import floats
from quantkit.protocols import ExportOptions
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView, TensorView
from tests.support.memory import tiny_config
from tests.support.quantized_models import linears, quantized_model, random_quantized

NAME = "model.layers.0.mlp.up_proj.weight"
GROUPS = {"mxfp4": 32, "nvfp4": 16}


def view_of(tensor: QuantizedTensor) -> QuantizedView:
    return QuantizedView(NAME, tensor.shape, tensor.scheme, lambda: tensor)


def read_back(words: np.ndarray, scales: np.ndarray, mode: str) -> QuantizedTensor:
    arrays = {"weight": words, "scales": scales}
    views = {
        name: TensorView(name, array.dtype, array.shape, lambda start, stop, array=array: array[start:stop].copy())
        for name, array in arrays.items()
    }
    return floats.read_view(NAME, (len(words), words.shape[1] * 8), floats.stored(mode), views).read()


@pytest.mark.parametrize("mode", GROUPS)
def test_every_code_with_every_scale_is_what_mlx_makes_of_it(mode: str) -> None:
    mx: Any = pytest.importorskip("mlx.core")
    group = GROUPS[mode]
    scales = np.arange(256, dtype=np.uint8)
    if mode == "mxfp4":
        scales = scales[1:249]  # the outermost are subnormal, too large for what is made of them, and NaN
    else:
        scales = scales[np.isfinite(scales.view(ml_dtypes.float8_e4m3fn).astype(np.float32)) & (scales < 128)]
    scales = scales[: len(scales) // 8 * 8]  # mlx wants whole rows of its own
    words = np.tile(np.array([0x76543210, 0xFEDCBA98], np.uint32), (len(scales), group // 16))
    tensor = read_back(words, scales[:, None], mode)
    how = {"group_size": group, "bits": 4, "mode": mode}
    wanted = np.array(mx.dequantize(mx.array(words), mx.array(scales[:, None]), None, **how).astype(mx.float32))
    assert np.array_equal(tensor.dequantized(), wanted)
    again = list(floats.packed(NAME, tensor, mode))
    assert np.array_equal(again[1], scales[:, None])  # type: ignore[arg-type]
    assert np.array_equal(again[0], words & ~np.array([0, 8] * (group // 16), np.uint32))  # a zero has no sign


def test_a_scale_that_is_nan_is_refused() -> None:
    for mode, byte in (("mxfp4", 255), ("nvfp4", 0x7F)):
        words = np.zeros((1, GROUPS[mode] // 8), np.uint32)
        with pytest.raises(NonFiniteValues, match=NAME):
            read_back(words, np.array([[byte]], np.uint8), mode)


@pytest.mark.parametrize("mode", GROUPS)
def test_ternary_weights_with_such_scales_are_held(mode: str) -> None:
    tensor = random_quantized((4, 128), AffineGroups(bits=2, group_size=64, ternary=True), 0)
    scale = np.array([[0.25, -0.5], [1.0, 0.125], [2.0**-6, 8.0], [1.0, -1.0]], np.float16)
    tensor = QuantizedTensor(tensor.scheme, tensor.codes, {"scale": scale, "zero": tensor.zero})
    made = floats.fitting(view_of(tensor), mode).read()
    words, scales = (np.asarray(x) for x in floats.packed(NAME, made, mode))
    assert np.array_equal(read_back(words, scales, mode).dequantized(), tensor.dequantized())


def test_what_they_do_not_hold_is_refused_by_name() -> None:
    four_bits = random_quantized((4, 128), AffineGroups(bits=4, group_size=32), 0)
    for mode in GROUPS:
        with pytest.raises(UnsupportedSpec, match=f"{NAME}: mlx's {mode} has"):
            floats.fitting(view_of(four_bits), mode)
    ones = np.ones((4, 4), np.float16)
    three = QuantizedTensor(
        AffineGroups(bits=3, group_size=32),
        four_bits.codes % 8,
        {"scale": ones * 3, "zero": np.full((4, 4), 4, np.uint8)},
    )
    with pytest.raises(UnsupportedSpec, match="other scales than 6"):
        floats.fitting(view_of(three), "mxfp4")
    assert floats.fitting(view_of(three), "nvfp4").scheme.bits == 5  # 6 is an E4M3
    with pytest.raises(UnsupportedSpec, match="groups of 32 columns"):
        floats.fitting(view_of(random_quantized((4, 64), AffineGroups(bits=4, group_size=16), 0)), "mxfp4")


def test_a_run_with_other_scales_is_refused_before_anything_is_written() -> None:
    model = quantized_model(
        tiny_config(hidden_size=64, intermediate_size=64), linears(AffineGroups(bits=4, group_size=32))
    )
    with pytest.raises(UnsupportedSpec, match="mxfp4"):
        registry.exporter("mlx").prepare(model, ExportOptions(type="mxfp4"))
