"""Linear layers that read the same input: what calibration and kernels take together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quantkit.models.spec import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGroup:
    """Linear layers of a block that read the same input.

    roles: the layers.
    fed_by: whose outputs they read, where these can be divided and the layers' columns multiplied without changing the
        function (`quantkit.solver.smoothing`); None where they cannot.
    writer: the layer that carries this half of the block into the residual stream, one of `roles` or of a later group.
    weighed: whether errors of their outputs are weighed by what they do to the predictions
        (`quantkit.calibration.fisher` says why not all are).
    """

    roles: tuple[Role, ...]
    fed_by: Role | None
    writer: Role
    weighed: bool = True

    @property
    def writes(self) -> bool:
        """Whether the outputs go into the residual stream."""
        return self.roles == (self.writer,)
