"""A device that is not the CPU, where there is none: a dress rehearsal for `--device cuda`.

Its tensors lie in this process's memory and are computed by the CPU, but they say that they are elsewhere, and an
operation on tensors of which some are elsewhere and some are not fails, as on a GPU; so does `.numpy()`. What can be
left out then, or done too early, is a `.to(device)`: numbers are those of the CPU.

Installing it changes torch for the whole process: `python -m tests.elsewhere TOKENIZER` does it in one of its own. It
calibrates and quantizes a tiny model there and on the CPU, and prints as JSON whether the generated text is the same
and, for each way of quantizing, the share of codes that are not.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from quantkit.block_stream import BlockStream
from quantkit.calibration import CPU, calibration_samples
from quantkit.calibration_text import CalibrationOptions, Samples
from quantkit.checkpoint import Checkpoint
from quantkit.family import LINEAR_ROLES
from quantkit.quantized import QuantizedTensor
from quantkit.registry import method
from quantkit.spec import QuantSpec
from tests.memory import memory_checkpoint, tiny_config

NAME = "elsewhere"
COPIES = ("aten::_to_copy", "aten::copy_")
"""The only ways there and back."""
LONGROPE = {
    "rope_type": "longrope",
    "long_factor": [1.5] * 8,
    "short_factor": [1.5] * 8,
    "original_max_position_embeddings": 64,
}
WAYS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "awq": ("awq", {}),
    "gptq": ("gptq", {"fisher": False}),
    "gptq, smoothed, outputs weighed": ("gptq", {"smooth": True}),
}


class Elsewhere(Tensor):
    """A tensor of that device: `inner` holds its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Elsewhere:
        made: Elsewhere = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )
        made.inner = inner
        return made

    def tolist(self) -> Any:
        """As on every device."""
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(
        cls, operation: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        decomposed = operation.decompose(*args, **(kwargs or {}))
        return computed(operation, *args, **(kwargs or {})) if decomposed is NotImplemented else decomposed


def computed(operation: Any, *args: Any, **kwargs: Any) -> Any:
    """What `operation` gives, on the tensors' values; refuses to mix devices."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    away = [x for x in tensors if isinstance(x, Elsewhere)]
    copying = operation.name() in COPIES
    if not copying and any(x.ndim for x in tensors if not isinstance(x, Elsewhere)):
        raise RuntimeError(f"{operation}: some tensors are on the CPU, others elsewhere")
    result = operation(*tree_map(_brought, args), **tree_map(_brought, kwargs))
    target = kwargs.get("device")
    if copying and target is not None and target.type == "cpu":
        return result
    if copying and target is None and not isinstance(args[0], Elsewhere):
        return args[0]
    # A view of a tensor that counts its versions must count them, too.
    inference = torch.is_inference_mode_enabled() and all(x.is_inference() for x in away)
    with torch.inference_mode(mode=inference):
        wrapped = tree_map(lambda x: Elsewhere(x) if isinstance(x, Tensor) else x, result)
    return return_and_correct_aliasing(operation, args, kwargs, wrapped)


def _brought(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("cpu")
    return value.inner if isinstance(value, Elsewhere) else value


class _Module(backend_registration._DummyBackendModule):  # type: ignore[misc]
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def install() -> tuple[torch.device, torch.library.Library]:
    """Make the device known to torch; it is while the library lives."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    library = torch.library.Library("_", "IMPL")
    library.fallback(computed, "PrivateUse1")  # for what has no tensors among its arguments: zeros, arange
    return torch.device(NAME, 0), library


def quantized(checkpoint: Checkpoint, samples: Samples, way: str, device: torch.device) -> dict[str, QuantizedTensor]:
    """Every linear layer of the model in 4 bits, computed on `device`."""
    method_name, options = WAYS[way]
    grid = QuantSpec(bits=4, group_size=32), method(method_name)
    stream = BlockStream(
        checkpoint,
        {slot.name: grid for slot in checkpoint.spec.slots() if slot.role in LINEAR_ROLES},
        samples,
        **{"skip_positions": 4, "propagate": True, "threads": 2, **options},
        device=device,
    )
    found = {}
    for _ in range(checkpoint.spec.num_hidden_layers):
        stream.advance()
        found |= stream.tensors
    return found


def different(here: Mapping[str, QuantizedTensor], there: Mapping[str, QuantizedTensor]) -> float:
    """The share of codes that are not the same."""
    unequal = sum(np.count_nonzero(tensor.codes != there[name].codes) for name, tensor in here.items())
    return float(unequal / sum(tensor.codes.size for tensor in here.values()))


def main(tokenizer: Path) -> int:
    """Compare and print; `tokenizer` is a folder with the files of one of 2048 tokens."""
    device, library = install()
    files = {path.name: path.read_bytes() for path in tokenizer.glob("*token*")}
    config = tiny_config(vocab_size=2048, intermediate_size=64, num_hidden_layers=2, rope_scaling=LONGROPE)
    checkpoint = memory_checkpoint(config, files=files)
    options = CalibrationOptions(sequences=10, length=40)
    here, there = (calibration_samples(checkpoint, options, device=where) for where in (CPU, device))
    same = all(map(np.array_equal, here.sequences, there.sequences))
    shares = {way: different(*(quantized(checkpoint, here, way, where) for where in (CPU, device))) for way in WAYS}
    print(json.dumps({"same text": same, "shares": shares}))
    del library
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
