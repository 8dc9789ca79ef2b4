"""A device that is not the CPU, where there is none: a dress rehearsal for `--device cuda`.

Its tensors lie in this process's memory and are computed by the CPU, but they say that they are elsewhere, and an
operation on tensors of which some are elsewhere and some are not fails, as on a GPU; so does `.numpy()`. What can be
left out then, or done too early, is a `.to(device)`. Sums are added as on a GPU, in larger pieces than on the CPU.

Installing it changes torch for the whole process, so it is done in one of its own:

    python -m tests.support.elsewhere MODEL            a tiny model with the tokenizer of MODEL, which has 2048 tokens
    python -m tests.support.elsewhere MODEL --whole    MODEL itself; minutes for the golden model

It calibrates and quantizes there and on the CPU, and prints as JSON whether the generated text is the same and, for
each way of quantizing, the share of codes that are not, and the mean error of all layers here and there.
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

from benchmarks.device_codes import different
from quantkit.calibration.samples import CalibrationOptions, Samples
from quantkit.calibration.sources import calibration_samples
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.loading import CPU
from quantkit.models.spec import LINEAR_ROLES
from quantkit.pipeline.blocks.block_stream import BlockStream
from quantkit.registry import method, open_checkpoint
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.schemes.affine_groups import AffineGroups
from tests.support.memory import memory_checkpoint, tiny_config

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
    "gptq, outputs weighed, smoothed": ("gptq", {"smooth": True}),
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


def quantized(
    checkpoint: Checkpoint, group_size: int, samples: Samples, way: str, device: torch.device
) -> tuple[dict[str, QuantizedTensor], float]:
    """Every linear layer of the model in 4 bits, computed on `device`, and the mean of their errors."""
    method_name, options = WAYS[way]
    grid = AffineGroups(bits=4, group_size=group_size), method(method_name)
    stream = BlockStream(
        checkpoint,
        {slot.name: grid for slot in checkpoint.spec.slots() if slot.role in LINEAR_ROLES},
        samples,
        **{"skip_positions": 4, "propagate": True, "threads": 2, **options},
        device=device,
    )
    tensors, errors = {}, []
    for _ in range(checkpoint.spec.num_hidden_layers):
        errors += [report.error for report in stream.advance().values()]
        tensors |= stream.tensors
    return tensors, float(np.mean(errors))


def rehearsed(checkpoint: Checkpoint, group_size: int, options: CalibrationOptions) -> dict[str, Any]:
    """What is printed."""
    device, _library = install()
    samples, others = (calibration_samples(checkpoint, options, threads=2, device=where) for where in (CPU, device))
    ways = {}
    for way in WAYS:
        (here, error), (there, other_error) = (
            quantized(checkpoint, group_size, samples, way, where) for where in (CPU, device)
        )
        share = different((tensor, there[name]) for name, tensor in here.items())
        ways[way] = {"different": share, "errors": [error, other_error]}
    return {"same text": all(map(np.array_equal, samples.sequences, others.sequences)), "ways": ways}


def main(folder: Path, *options: str) -> int:
    """Compare and print."""
    if options == ("--whole",):
        found = rehearsed(open_checkpoint(folder), 128, CalibrationOptions(sequences=16, length=512))
    else:
        files = {path.name: path.read_bytes() for path in folder.glob("*token*")}
        config = tiny_config(vocab_size=2048, intermediate_size=64, num_hidden_layers=2, rope_scaling=LONGROPE)
        found = rehearsed(memory_checkpoint(config, files=files), 32, CalibrationOptions(sequences=10, length=40))
    print(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
