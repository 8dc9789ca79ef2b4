"""What calibrated methods compute with and on: torch, and a CPU or a GPU; whether it is here is asked beforehand."""

from __future__ import annotations

from importlib.util import find_spec

from quantkit.errors import BadOption, MissingDependency


def check_torch(name: str) -> None:
    """Raise `MissingDependency` if what the calibrated method `name` computes with is not installed."""
    if find_spec("torch") is None:
        raise MissingDependency(
            f"method {name} needs torch, which is not installed", hint="pip install 'quantkit[torch]'"
        )


def check_device(device: str, method_name: str, *, calibrated: bool) -> None:
    """Raise `BadOption` unless something can be computed on `device` here."""
    if device != "cuda":
        raise BadOption(f"there is no device {device!r}", hint="choose cpu or cuda")
    if not calibrated:
        raise BadOption(f"{method_name} is not calibrated and works on the CPU", hint="leave --device out")
    import torch  # noqa: PLC0415 - heavy, and round-to-nearest does without it

    if not torch.cuda.is_available():
        raise BadOption(
            f"torch {torch.__version__} sees no CUDA device here",
            hint="leave --device out, or install a build of torch for CUDA and its driver",
        )
