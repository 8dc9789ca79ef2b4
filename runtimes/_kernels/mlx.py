"""mlx-lm: its own classes on affine codes of 1 to 8 bits, in groups of 32, 64 and 128, and on dense weights.

Its class for a MiniCPM cannot load a tied embedding; and the tokenizer beside one with LongRoPE is not loaded either,
because transformers' reader of configs, which it calls, fails on that. A folded Llama has neither problem.

Its LongRoPE takes the long factors at every length, derives the attention factor from the two contexts, and ignores one
that the config names; its dynamic NTK turns new keys by the length of the text so far, and leaves older ones as they
were. Source: mlx-lm 0.32.2 `models/rope_utils.py`, `models/minicpm.py`, `models/llama.py`, `mlx_lm.utils`.
"""

from __future__ import annotations

from quantkit.models.checkpoint import Checkpoint
from quantkit.runtimes._kernels._rules import KernelRules, Matrix

GROUPS = (32, 64, 128)
BITS = (2, 3, 4, 5, 6, 8)
FLOATS = ("mxfp4", "nvfp4")
"""`QuantizedView.stored_as` of floating-point codes."""


def _model(model: Checkpoint) -> str | None:
    spec = model.spec
    factor = spec.explicit_attention_factor
    if factor is not None:
        return f"its LongRoPE takes no attention factor, and the config says {factor:g}"
    if spec.architecture == "minicpm":
        if spec.tie_word_embeddings:
            return "it cannot load a MiniCPM whose head is the embedding"
        if spec.rope.kind == "longrope":
            return "it does not load the tokenizer of a MiniCPM with LongRoPE"
        if spec.head_dim * spec.num_attention_heads != spec.hidden_size:
            heads = spec.num_attention_heads
            return f"its MiniCPM takes {spec.hidden_size} / {heads} channels per head, not {spec.head_dim}"
    return None


def _check(matrix: Matrix) -> str | None:
    scheme, cols = matrix.scheme, matrix.shape[1]
    if any(getattr(weight, "stored_as", None) in FLOATS for weight in matrix.weights):
        return None
    if scheme.bits not in BITS or scheme.group_width(cols) not in GROUPS:
        return f"is {scheme}; it takes 2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 or 128"
    return None


def _remark(model: Checkpoint) -> str | None:
    rope = model.spec.rope
    original = rope.original_max_position_embeddings
    if rope.kind == "longrope" and rope.short_factor != rope.long_factor:
        return f"takes LongRoPE's long factors at every length: texts of up to {original} tokens differ from the model"
    if rope.kind == "dynamic":
        return f"beyond {original} tokens it turns keys by the length of the text when they came: not as the model does"
    return None


def misread(model: Checkpoint) -> str | None:
    """What mlx-lm would take otherwise from a folder's config than it says, or None.

    It reads `rope_theta` and `rope_scaling`, and passes over `rope_parameters` of newer transformers. Asked of folders
    that lie there: of one that is planned the config is not written yet, and ours leave nothing out.
    """
    if model.config.get("rope_theta") is None:
        return "the config has no rope_theta at its top, where it looks for it"
    if model.config.get("rope_scaling") is None and model.spec.rope.kind != "default":
        return "the config has no rope_scaling, where it looks for the kind of RoPE"
    return None


def _usage(model: Checkpoint) -> str:
    return 'mlx_lm.generate --model FOLDER --prompt "The sky is"'


MLX_LM = KernelRules(
    usage=_usage,
    name="mlx-lm",
    engine="mlx",
    containers=("mlx",),
    check=_check,
    check_model=_model,
    remark=_remark,
    affine=False,
)
KERNELS = (MLX_LM,)
