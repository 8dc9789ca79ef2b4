"""From candidates to a mixture: text is read or written, every candidate measured, and the best choice made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from quantkit.calibration.compute import Compute, check_torch
from quantkit.calibration.samples import CalibrationOptions, Samples
from quantkit.models.checkpoint import Checkpoint
from quantkit.pipeline.mixtures.mixture import Chosen, Groups, Mixture, check_reachable, choose
from quantkit.pipeline.mixtures.size import TargetSize
from quantkit.pipeline.planning.peak_memory import check_memory
from quantkit.progress import Progress, unwatched
from quantkit.tensors.block_options import Candidates

MEASURING = "measuring what every type loses"


@dataclass(frozen=True, slots=True)
class Search:
    """What is searched.

    model: the dense model. weights: how many bits per weight are told of. groups: names that must be alike. size: bytes
    of the finished files with a choice.
    """

    model: Checkpoint
    weights: int
    target: TargetSize
    candidates: Candidates
    groups: Groups
    size: Callable[[Chosen], int]

    def check(self) -> None:
        """Raise `BadOption` where even the smallest mixture is too large."""
        check_torch("choosing types by measured loss")
        check_reachable(self.candidates, self.groups, self.target, weights=self.weights, size=self.size)

    def found(
        self, calibration: CalibrationOptions, *, feedback: bool, compute: Compute, progress: Progress | None
    ) -> tuple[Mixture, Samples]:
        """The mixture, and the text that it was measured on.

        Args:
            calibration: the text.
            feedback: whether a solver with error feedback will choose the codes.
            compute: with what.
            progress: told of text that is written, and then of what is measured.

        Raises:
            BadOption: as `check`; text that takes more memory than there is. What reading calibration text raises.
        """
        import torch  # noqa: PLC0415 - heavy

        from quantkit.calibration.sources import calibration_samples  # noqa: PLC0415 - imports torch
        from quantkit.pipeline.mixtures.losses import measured_losses  # noqa: PLC0415 - imports torch

        check_memory(self.model.spec, calibration.sequences, calibration.sequences * calibration.length, weighs=True)
        samples = calibration_samples(
            self.model,
            calibration,
            threads=compute.threads,
            device=torch.device(compute.device),
            bfloat16=compute.in_bfloat16(),
            progress=progress,
        )
        tell = progress or unwatched
        losses = measured_losses(
            self.model,
            self.candidates,
            samples,
            feedback=feedback,
            skip_positions=calibration.skip_positions,
            threads=compute.threads,
            bfloat16=compute.in_bfloat16(),
            progress=lambda _, done, total: tell(MEASURING, done, total),
        )
        mixture = choose(self.candidates, losses, self.groups, self.target, weights=self.weights, size=self.size)
        return mixture, samples
