"""In what the published codes of InfLLM-v2 differ, each difference a method: the first class is the default."""

from __future__ import annotations

import numpy as np

from quantkit.errors import BadOption
from quantkit.models.spec import COARSE, SparseSpec


class Variant:
    """Hugging Face's code of MiniCPM4.1 and SALA, which SGLang's follows."""

    name = "minicpm4.1"
    coarse = True
    """Whether scores are normalised over the coarse means instead of those that are scored."""
    adds_window = False
    """Whether the window is seen beside the chosen blocks, and its blocks are not chosen, instead of always."""
    compresses_first = True
    """Whether a call's own keys are among those that it is scored by."""
    chunk: int | None = None
    """Tokens of a prompt that go through attention at a time, where that changes the result."""

    def check(self, sparse: SparseSpec) -> None:
        """Refuse a configuration with which a token may see nothing at all; raises `BadOption`."""

    def is_sparse(self, sparse: SparseSpec, *, history: int, length: int) -> bool:
        """Whether a call attends sparsely. history: tokens before it, length: of its whole prompt, or with it."""
        return length >= sparse.dense_len

    def sparse_from(self, sparse: SparseSpec) -> int:
        """Tokens of a prompt, read at once, whose last one attends sparsely."""
        return max(1, sparse.dense_len)

    def chosen(self, sparse: SparseSpec) -> int:
        """Blocks that are chosen, those that always are among them."""
        return sparse.topk + sparse.local_blocks

    def first_local(self, sparse: SparseSpec, positions: np.ndarray) -> np.ndarray:
        """First block of the window of each position, (T,); the window has one more than `local_blocks`."""
        first: np.ndarray = positions // sparse.block_size - sparse.local_blocks
        return first

    def window_start(self, sparse: SparseSpec, positions: np.ndarray) -> np.ndarray:
        """From which token on each position sees everything before it, chosen or not, (T,): itself at the latest."""
        return positions + 1

    def seen(self, positions: np.ndarray, kernel: int, stride: int, *, means: int, prompt: int | None) -> np.ndarray:
        """How many of the first means each position is scored by, (T,): those of tokens that are not after it.

        One fewer in a prompt (not in decoding) whose length leaves `stride - 1` when divided by `stride`: so the kernel
        rounds.
        """
        fewer = int(prompt is not None and prompt % stride == stride - 1)
        count: np.ndarray = np.clip((positions + 1 - kernel) // stride + 1 - fewer, 0, means)
        return count


class June(Variant):
    """Hugging Face's code of MiniCPM4, June 2025."""

    name = "minicpm4"
    coarse = False
    adds_window = True

    def check(self, sparse: SparseSpec) -> None:
        """A token's own block is seen as a part of the window only."""
        if sparse.local_blocks == 0:
            raise BadOption(
                f"variant {self.name} needs a window of a block of {sparse.block_size} tokens at least, and "
                f"sparse_config has window_size {sparse.window_size}",
                hint="run it as minicpm4.1",
            )

    def chosen(self, sparse: SparseSpec) -> int:
        """`topk`: blocks of the window are not among them."""
        return sparse.topk

    def first_local(self, sparse: SparseSpec, positions: np.ndarray) -> np.ndarray:
        """The window has `local_blocks`, the position's own among them."""
        first: np.ndarray = positions // sparse.block_size - sparse.local_blocks + 1
        return first

    def window_start(self, sparse: SparseSpec, positions: np.ndarray) -> np.ndarray:
        """Where the window's first block begins."""
        return self.first_local(sparse, positions) * sparse.block_size


class CpmCu(June):
    """OpenBMB's CPM.cu as its command line runs it; its sparse switch is `dense_len` here, its window `window_size`.

    Blocks outside of its selection fill up what top-k leaves over in ways that depend on its sorting; here they do not.
    """

    name = "cpm.cu"
    coarse = True
    compresses_first = False
    chunk: int = 2048

    def is_sparse(self, sparse: SparseSpec, *, history: int, length: int) -> bool:
        """Once there is a coarse mean of the history, and the tokens that those cover pass the switch."""
        stride = COARSE * sparse.kernel_stride
        means = max(0, (history - COARSE * sparse.kernel_size) // stride + 1)
        return means > 0 and means * stride > sparse.dense_len

    def sparse_from(self, sparse: SparseSpec) -> int:
        """The first token of the first piece that does."""
        pieces = (max(0, sparse.dense_len) + COARSE * (sparse.kernel_size + sparse.kernel_stride)) // self.chunk
        history = self.chunk * max(1, pieces)
        while not self.is_sparse(sparse, history=history, length=history):
            history += self.chunk
        return history + 1

    def window_start(self, sparse: SparseSpec, positions: np.ndarray) -> np.ndarray:
        """The kernel counts the window's blocks in its own, which are half as long: some tokens are never seen."""
        half = max(1, sparse.block_size // 2)
        return (-(-positions // half) - sparse.local_blocks) * half

    def seen(self, positions: np.ndarray, kernel: int, stride: int, *, means: int, prompt: int | None) -> np.ndarray:
        """All: they are of the history."""
        return np.full(len(positions), means)


DEFAULT = Variant()
VARIANTS = (DEFAULT, June(), CpmCu())


def variant_named(name: str) -> Variant:
    """The variant called `name`; raises `BadOption` for another word."""
    for variant in VARIANTS:
        if variant.name == name:
            return variant
    raise BadOption(
        f"there is no variant {name!r} of sparse attention", hint=f"one of {', '.join(v.name for v in VARIANTS)}"
    )
