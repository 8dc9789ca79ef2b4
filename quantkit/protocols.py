"""The seams: `Method`, `Exporter`, `Runtime`, and `Kernel`, what an engine can load and compute with.

The two others lie with what they are about: `quantkit.tensors.scheme.Scheme` and `quantkit.models.spec.Architecture`.
A plug-in is a module-level object (`METHOD`, `EXPORTER`, `RUNTIME`), inherits nothing, and holds tests/support/laws.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self

    from quantkit.calibration.statistics import LayerStatistics
    from quantkit.files.planned_files import PlannedArtifact
    from quantkit.models.checkpoint import Checkpoint
    from quantkit.tensors.block_options import BlockOptions
    from quantkit.tensors.quantized_tensor import QuantizedTensor
    from quantkit.tensors.scheme import Scheme


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """What a user may choose about a container.

    type: element type in the container's words ("q4_0", "bf16"); None = the exporter's default for this source.
    arch: "native" keeps the family's scalars in the config, unless the engine would not follow; "llama" folds them.
    target, bits: one of `Exporter.targets`, None = the first; of `widths`, for narrower symmetric codes, None = theirs.
    ops: which operators a graph is written in: "contrib", the engine's own, or "standard"; None = the former.
    context, attention: tokens that a graph bakes rotations for, None = all that the model can; one of `ATTENTIONS`.
    blocks, threads: how dense weights are quantized on the way. split_bytes: the most that one of several files takes.
    """

    type: str | None = None
    arch: str = "native"
    target: str | None = None
    bits: int | None = None
    ops: str | None = None
    context: int | None = None
    attention: str = "dense"
    blocks: BlockOptions | None = None
    threads: int = 1
    split_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class TensorReport:
    """How well one tensor was quantized.

    error: ||(W - Q) X||^2 / ||W X||^2 over the calibration inputs (||W - Q||^2 / ||W||^2 without them).
    error_of_rounding: the same for round-to-nearest, where the method compared itself with it.
    strength: how far the weights were moved to make up for earlier layers, 0 to 1; None when that was not tried.
    fallback: None, or why the method's result was given up for round-to-nearest.
    smoothing: exponent of the input scales (`quantkit.solver.smoothing_search`), 0 = none did better, None = not tried.
    left_out: what the error was measured on once more, if it was: `error_without` for codes that were chosen without
        these sources, `error_with` for the codes as they are, `rounding_without` for round-to-nearest.
    """

    error: float
    error_of_rounding: float | None = None
    strength: float | None = None
    fallback: str | None = None
    smoothing: float | None = None
    left_out: str | None = None
    error_without: float | None = None
    error_with: float | None = None
    rounding_without: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A linear layer to quantize.

    name: of its weight, for messages. weight: float32 (rows, cols). scheme: how its codes become weights.
    sensitivity: the G of `quantkit.calibration.fisher`, float32 [rows, rows]; None = all outputs are alike.
    """

    name: str
    weight: np.ndarray
    scheme: Scheme
    sensitivity: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Readers:
    """Layers that read the same inputs, with these inputs and with what comes before them and can be divided.

    layers: all that read them. folds: what they read, float32 [tokens, cols] of every sequence of every fold, times the
    square root of what its tokens count. feeding: the weight of what comes before, float32; of a norm [size], of a
    matrix [rows, cols] on `feeding_scheme`, which is None for a norm. feeding_dtype: that of the weight in the
    checkpoint. head_dim: channels of a head; query heads that share a key-value head share their scales.
    """

    layers: tuple[Layer, ...]
    folds: Sequence[Sequence[Tensor]]
    feeding: Tensor
    feeding_scheme: Scheme | None
    feeding_dtype: np.dtype
    head_dim: int


@dataclass(frozen=True, slots=True, eq=False)
class InputScales:
    """The exponent that was chosen, and float32 scales, one for each output of what comes before; None = no scaling."""

    exponent: float
    scale: np.ndarray | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a kernel takes a model, told before any work.

    kernel: its name, one of `engine`'s. refusal: why not, with the weight's name; None = it does. setting: what the
    engine must be told to take it, such as "--trust-remote-code". remark: at what cost it does. mend: the option of
    quantkit that would make it take the model, such as "--arch llama". sparsely: how it attends where the model has a
    `sparse_config`; None = densely, as if it had none."""

    kernel: str
    engine: str
    refusal: str | None = None
    setting: str | None = None
    remark: str | None = None
    mend: str | None = None
    sparsely: str | None = None


class Method(Protocol):
    """Chooses codes and parameters for layers that read the same inputs, such as q, k and v."""

    @property
    def name(self) -> str:
        """What users call it."""
        ...

    @property
    def summary(self) -> str:
        """One line."""
        ...

    @property
    def default_scheme(self) -> Scheme:
        """How codes become weights where the user does not say."""
        ...

    @property
    def takes_over(self) -> bool:
        """Whether weights that lie on its levels as they are are taken over, code for code, and no others changed."""
        ...

    @property
    def needs_calibration(self) -> bool:
        """Whether it reads statistics of the inputs."""
        ...

    @property
    def weighs_outputs(self) -> bool:
        """Whether it reads `Layer.sensitivity`."""
        ...

    @property
    def scales_inputs(self) -> bool:
        """Whether `input_scales` is asked for where the user does not say."""
        ...

    @property
    def choices(self) -> tuple[Method, ...]:
        """Itself in the settings among which sources that are left out choose, the usual ones first."""
        ...

    def input_scales(self, readers: Readers, *, threads: int = 1) -> InputScales:
        """By what to divide what the layers read, and multiply their columns, first; asked where it is calibrated."""
        ...

    def quantize(
        self, layers: Sequence[Layer], statistics: LayerStatistics | None, *, threads: int = 1
    ) -> list[tuple[QuantizedTensor, TensorReport]]:
        """Quantize layers that read the same inputs; a result for each, in order.

        Args:
            layers, threads: what to quantize, and how many to use, on which the result does not depend.
            statistics: of their inputs; only read when `needs_calibration`.

        Raises:
            UnsupportedSpec: a group size that does not divide the columns.
            NonFiniteValues: NaN or infinity in a weight.
            ValueOutOfRange: a scale beyond the scheme's scale dtype.

        Statistics never make it abort: where they are useless it rounds to nearest and reports why.
        """
        ...


class Exporter(Protocol):
    """Packs a checkpoint into one container, and reads it back."""

    name: str
    summary: str
    types: tuple[str, ...]
    targets: tuple[str, ...]
    """Engines whose layouts of this container differ; empty for most, where there is nothing to choose."""
    widths: tuple[int, ...]
    """Bits in which symmetric codes can be stored; empty where there is nothing to choose."""
    engines: tuple[str, ...]
    """Names of the runtimes in `runtimes/` that load this container."""

    def recognizes(self, path: Path) -> bool:
        """Whether `path` looks like this container (cheap: names and magic bytes only)."""
        ...

    def prepare(self, checkpoint: Checkpoint, options: ExportOptions) -> PlannedArtifact:
        """Plan every file and byte without reading tensor data; raise `UnsupportedSpec` naming the tensor."""
        ...

    def read(self, path: Path) -> Checkpoint:
        """Open an artifact of this container, strictly. The inverse of writing: codes and scales come back equal."""
        ...


class Session(Protocol):
    """A loaded model. A context manager; leaving it frees the engine."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """Log-probabilities up to a constant per row: float32 [len(token_ids), vocab], row t predicts token t + 1."""
        ...

    def next_logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """Last row of `logits`: float32 [vocab]. Cheap when `token_ids` extend those of the call before.

        Where a whole row is costly an engine may give -inf for all but its few thousand most likely tokens.
        """
        ...


@runtime_checkable
class TracingSession(Session, Protocol):
    """A session that shows its stages, so that one that diverges can be located. `isinstance` tells.

    The stages are named and scaled as the reference's, whatever the engine calls them: the embedding after
    `scale_emb`, a block after both of its sums, the final norm before `logit_divisor`.
    """

    def trace(self, token_ids: Sequence[int]) -> Mapping[str, np.ndarray]:
        """Every stage in order: "embedding", "block 0", ..., "final norm" [T, hidden], "logits" [T, vocab]; float32."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """What the reference runtime predicts on one prompt of T tokens.

    exact: float32 logits [T, vocab], row t predicts token t + 1.
    rounded: with every matrix's input rounded to int8, which correct integer kernels may lose; None = not asked for.
    """

    exact: np.ndarray
    rounded: np.ndarray | None


class OracleSession(TracingSession, Protocol):
    """What the reference runtime's sessions can do beyond `TracingSession`."""

    def predictions(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        int8_run: int | None,
        progress: Callable[[str, int, int], None] | None = None,
        positions: Sequence[int] | None = None,
    ) -> Iterator[Predictions]:
        """Yield the predictions on each of the prompts' token ids, in order, and hold no others.

        int8_run: how many values in a row share a scale where inputs are rounded to int8, `PER_ROW` for all that a
            token has; None = it is not asked for what that costs. positions: only these rows of each; None = all.
        progress: told what is done ("block 3 of 24", for all prompts at once), steps done and steps in all.
        """
        ...


class Runtime(Protocol):
    """An inference engine."""

    name: str
    summary: str
    formats: tuple[str, ...]
    """Names of the exporters whose artifacts it can load."""
    architectures: tuple[str, ...]
    """Values of `ModelSpec.architecture` that it can run."""

    def missing(self) -> str | None:
        """None when the engine can run here, else one line that says what to install."""
        ...

    def arithmetic(self, checkpoint: Checkpoint) -> str:
        """How the engine multiplies this artifact's weights: what a correct one may lose on them.

        "float32": everything in float32. "float16 inputs", "bfloat16 inputs", "int8 inputs": one factor of each product
        is rounded to that first, the rest is float32; int8 in runs of 32 values, "int8 inputs of 256" in runs of 256,
        "int8 tokens" of all that a token has. "float16": everything is rounded to float16 but sums.
        """
        ...

    def refuses(self, checkpoint: Checkpoint) -> str | None:
        """None when the engine can run this artifact, else one line that says why not; reads no tensor data."""
        ...

    def open(self, path: Path) -> Session:
        """Load the artifact; raise `EngineFailed` or a reading error in one line."""
        ...


class Kernel(Protocol):
    """One way in which an engine loads a model and multiplies; the engine need not be one that quantkit runs."""

    @property
    def name(self) -> str:
        """What users see: "vllm-cpu"."""
        ...

    @property
    def engine(self) -> str:
        """The engine that it belongs to, by the runtime's name where there is one."""
        ...

    @property
    def containers(self) -> tuple[str, ...]:
        """Names of the exporters whose artifacts it reads."""
        ...

    @property
    def targets(self) -> tuple[str, ...]:
        """Of a container that has several targets, those that it reads; empty = any."""
        ...

    def verdict(self, model: Checkpoint) -> Verdict:
        """What it says to `model` as it lies in the container `model.format`; reads no tensor data."""
        ...
