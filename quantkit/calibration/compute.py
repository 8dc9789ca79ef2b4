"""What calibrated methods compute with and on: torch, and a CPU or a GPU; whether it is here is asked beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from quantkit.errors import BadOption, MissingDependency

MAX_THREADS = 1024
"""More than any machine here gains from; each takes megabytes of stack."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """What is computed with, and on.

    threads: how many to use; no result depends on it.
    device: what calibrated methods compute on, cpu or cuda. Sums are added in another order there: once a scale rounds
        otherwise, so do codes of all that makes up for it; errors are as small.
    bfloat16: whether calibration forwards compute in it (`quantkit.calibration.autocast`); None = on a CPU that has
        instructions for it.
    """

    threads: int = 1
    device: str = "cpu"
    bfloat16: bool | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.threads <= MAX_THREADS:
            raise BadOption(f"threads must be from 1 to {MAX_THREADS:,}, is {self.threads:,}")

    def in_bfloat16(self) -> bool:
        """Whether calibration forwards compute in bfloat16 here."""
        if self.bfloat16 is not None:
            return self.bfloat16
        from quantkit.calibration.autocast import has_bfloat16_products  # noqa: PLC0415 - imports torch

        return self.device == "cpu" and has_bfloat16_products()


def check_torch(what: str) -> None:
    """Raise `MissingDependency` if torch is not installed, which `what` ("method gptq") computes with, on a text."""
    if find_spec("torch") is None:
        raise MissingDependency(
            f"{what} needs torch, which is not installed", hint="pip install 'quantkit[torch,text]'"
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
