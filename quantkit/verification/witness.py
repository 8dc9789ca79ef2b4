"""A second witness for the logits that are recorded: transformers, which reads the model's folder by itself.

quantkit's torch model and its reference runtime compute from the same `ModelSpec`. A config that is misread makes both
wrong alike, and nothing that is compared with them later would show it. transformers shares nothing with quantkit but
the files. It has stock classes for Llama only.

The two differ by float32 rounding: in every block, and in the angles of far positions, where transformers multiplies in
another order than OpenBMB's code (an angle of t radians is rounded by t * 6e-8). The root mean square of the
differences over all logits of a prompt, in units of float32's epsilon times the spread of the logits, was measured as
at most 3 on 16 tokens and 8 on 512 for 2 to 48 random blocks, and 16 on 1000 tokens under LongRoPE. `tolerance` allows
four times that.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quantkit import registry
from quantkit.errors import EngineFailed, GoldenMismatch
from quantkit.models.checkpoint import Checkpoint
from quantkit.verification.prompts import Prompt

WITNESS = "transformers"
EPSILON = float(np.finfo(np.float32).eps)


def agreement(checkpoint: Checkpoint, prompts: Sequence[Prompt], logits: Sequence[np.ndarray]) -> str | None:
    """Compare `logits`, float32 [tokens, vocab] for each of `prompts`, with those of transformers on the same folder.

    Returns:
        One line that says how far they agree or why transformers could not load the folder; None where it has no class
        for the model or is not installed.

    Raises:
        GoldenMismatch: they differ by more than float32 rounding; names the prompt and the figure.
    """
    runtime = registry.runtime(WITNESS)
    known = checkpoint.format in runtime.formats and checkpoint.spec.architecture in runtime.architectures
    if not known or runtime.missing() is not None:
        return None
    refusal = runtime.refuses(checkpoint)
    if refusal is not None:
        return f"no second witness for the logits: {WITNESS}: {refusal}"
    try:
        session = runtime.open(checkpoint.path)
    except EngineFailed as error:
        return f"no second witness for the logits: {error}"
    largest = 0.0
    with session:
        for prompt, ours in zip(prompts, logits, strict=True):
            theirs = session.logits(prompt.token_ids)
            found = distance(ours, theirs)
            allowed = tolerance(checkpoint.spec.num_hidden_layers, len(prompt.token_ids))
            if not found <= allowed:
                raise GoldenMismatch(
                    f"{checkpoint.path}: transformers computes other logits for prompt {prompt.name!r}: they differ by "
                    f"{found:.2g} of their spread, rounding explains {allowed:.2g}",
                    hint="config.json says something that quantkit and transformers understand differently; report it",
                )
            largest = max(largest, found)
    return f"{WITNESS} agrees on {len(prompts)} prompts, to {largest:.1e} of the logits' spread"


def distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Root mean square of the differences over the largest spread of a row; NaN where one of them is."""
    spread = float(np.ptp(theirs, axis=-1).max()) or 1.0
    return float(np.sqrt(np.mean(np.square(ours.astype(np.float64) - theirs)))) / spread


def tolerance(layers: int, tokens: int) -> float:
    """What `distance` may be for a model of so many blocks on so many tokens; see the module's docstring."""
    return EPSILON * (2 + layers / 2 + tokens / 16)
