"""The model that is trained: fake-quantized matrices, dense weights, and the module that computes with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from quantkit.models.checkpoint import Checkpoint
from quantkit.models.loading import load_model, read_float32
from quantkit.models.spec import BLOCKS
from quantkit.models.torch_model import MiniCPM
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.views import BFLOAT16, QuantizedView, TensorView
from quantkit.training.options import EVERYTHING, FROZEN, LEARNED, TrainingOptions
from quantkit.training.weights.fake_quantization import (
    DerivedScales,
    FakeQuantizer,
    LearnedScales,
    affine_scheme,
    derived,
)

FULL_RATE_LEVELS = 4
STORED = {np.dtype(np.float32): torch.float32, np.dtype(np.float16): torch.float16, BFLOAT16: torch.bfloat16}


@dataclass(frozen=True, slots=True, eq=False)
class Parameter:
    """A tensor that is trained, its name in saved states, and its learning rate at full height."""

    name: str
    tensor: Tensor
    rate: float


class Student:
    """The model in training, computed in `module`.

    Args:
        original: the dense model, smoothed as `start` is.
        start: the same model with the matrices to train quantized, and dense weights to begin with.
        options: which weights are trained, and how fast.
        device: where all of it lies.

    Raises:
        UnsupportedSpec: a grid that cannot be trained, with the weight's name.
        NonFiniteValues: NaN or infinity in a weight, with its name.
    """

    def __init__(self, original: Checkpoint, start: Checkpoint, options: TrainingOptions, device: torch.device) -> None:
        self._options = options
        self._quantizers: dict[str, FakeQuantizer] = {}
        self._slower: dict[str, float] = {}  # what is left to gain on a fine grid is small, and easily overshot
        self._dense: dict[str, Tensor] = {}
        self._stored: dict[str, np.dtype] = {}
        self._sizes: dict[str, Tensor] = {}  # as training begins: a resumed one must not take them anew
        made: dict[str, Tensor] = {}
        for name, weight in start.weights.items():  # in the order of the model: a run computes them so
            if isinstance(weight, QuantizedView):
                values = torch.tensor(read_float32(original.weights[name]), device=device)
                self._quantizers[name] = _quantizer(name, values, weight.read(), options)
                self._slower[name] = min(1.0, FULL_RATE_LEVELS / affine_scheme(name, weight.scheme).levels)
            else:
                made[name] = torch.tensor(read_float32(weight), device=device)  # numpy's memory varies in alignment
                if _is_trained(name, weight, options):
                    self._dense[name] = made[name].clone()
                    self._stored[name] = weight.dtype
                    self._sizes[name] = made[name].square().mean().sqrt()
        with torch.device("meta"):
            self.module = MiniCPM(original.spec)
        made |= {name: quantizer.values() for name, quantizer in self._quantizers.items()}
        self.module.load_state_dict(made, assign=True)
        self.module.eval().requires_grad_(False)
        for name in self.trained_names():
            self.module.get_parameter(name).requires_grad_()
        self.refresh()

    def trained_names(self, block: int | None = None) -> list[str]:
        """Names of the trained weights, of the whole model or of one block."""
        prefix = "" if block is None else f"{BLOCKS}{block}."
        return [name for name in (*self._quantizers, *self._dense) if name.startswith(prefix)]

    def weights(self, names: Sequence[str]) -> list[nn.Parameter]:
        """What `module` computes with, and gradients are asked for."""
        return [self.module.get_parameter(name) for name in names]

    def parameters(self, names: Sequence[str]) -> Iterator[Parameter]:
        """All that is trained of the weights `names`."""
        rates = {"latent": self._options.learning_rate, "scale": self._options.scale_rate}
        for name in names:
            if name in self._dense:
                yield Parameter(name, self._dense[name], self._options.dense_rate * float(self._sizes[name]))
                continue
            quantizer, slower = self._quantizers[name], self._slower[name]
            for part, tensor in quantizer.parameters.items():
                rate = slower * rates[part] * (float(quantizer.unit) if part == "latent" else 1.0)
                yield Parameter(f"{name}.{part}", tensor, rate)

    @torch.no_grad()
    def backward(self, names: Sequence[str], gradients: Sequence[Tensor]) -> None:
        """Set `.grad` of the parameters of `names` from the gradients of what `module` computes with."""
        for name, gradient in zip(names, gradients, strict=True):
            if name in self._dense:
                self._dense[name].grad = gradient
            else:
                self._quantizers[name].backward(gradient)

    @torch.no_grad()
    def refresh(self, names: Sequence[str] | None = None) -> None:
        """Let `module` compute with what the parameters are now."""
        for name in self.trained_names() if names is None else names:
            parameter = self.module.get_parameter(name)
            if name in self._dense:
                parameter.copy_(self._dense[name].to(STORED[self._stored[name]]))
            else:
                parameter.copy_(self._quantizers[name].values())

    def state(self) -> list[Tensor]:
        """All that decides what `module` computes with, now and after steps: several processes must agree on it."""
        constants = [tensor for quantizer in self._quantizers.values() for tensor in quantizer.constants()]
        constants += self._sizes.values()
        trained = [one.tensor for one in self.parameters(self.trained_names())]
        return [*constants, *trained, *(parameter.data for parameter in self.module.parameters())]

    def tensors(self) -> dict[str, QuantizedTensor]:
        """Codes and scales of every trained matrix: exactly what `module` computes with."""
        return {name: quantizer.exported() for name, quantizer in self._quantizers.items()}

    def dense(self) -> dict[str, np.ndarray]:
        """Every trained dense weight, in the dtype that it came in: exactly what `module` computes with."""
        return {name: tensor.cpu().numpy().astype(self._stored[name]) for name, tensor in self._dense.items()}


@torch.no_grad()
def naive_model(original: Checkpoint, start: Checkpoint, device: torch.device) -> MiniCPM:
    """The original, with those matrices naively rounded to symmetric grids that are quantized in `start`."""
    model = load_model(original).to(device)
    for name, weight in start.weights.items():
        if isinstance(weight, QuantizedView):
            scheme = affine_scheme(name, weight.scheme)
            scheme = scheme if scheme.symmetric else affine_scheme(name, scheme.with_settings(symmetric=True))
            rounded = derived(read_float32(original.weights[name]), scheme).dequantized()
            model.get_parameter(name).copy_(torch.from_numpy(rounded))
    return model


def _quantizer(name: str, values: Tensor, start: QuantizedTensor, options: TrainingOptions) -> FakeQuantizer:
    scheme = affine_scheme(name, start.scheme)
    return LearnedScales(values, start) if options.scales == LEARNED else DerivedScales(values, scheme)


def _is_trained(name: str, weight: TensorView, options: TrainingOptions) -> bool:
    if options.dense == EVERYTHING:
        return True
    return options.dense != FROZEN and len(weight.shape) == 1 and name.startswith(BLOCKS)
