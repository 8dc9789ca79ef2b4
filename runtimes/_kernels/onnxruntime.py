"""onnxruntime's kernels on the CPU, and onnxruntime-genai, which runs them in a loop of its own.

Blocks are what the exporter makes them: powers of two. MatMulNBits has 2, 4 and 8 bits; at accuracy level 0, where
inputs stay what they are, 8 bits are made float32 at every call. onnxruntime-genai works on ids as the model does; its
tokenizer, from text to ids, is another matter. Measured with onnxruntime 1.32 and onnxruntime-genai 0.18.
"""

from __future__ import annotations

from quantkit.models.checkpoint import Checkpoint
from quantkit.runtimes._kernels._rules import KernelRules, Matrix
from quantkit.tensors.views import QuantizedView

BITS = (2, 4, 8)
SLOW = 8
TEXT = "its tokenizer splits runs of spaces otherwise than the model's and adds no BOS: give it ids"


def _check(matrix: Matrix) -> str | None:
    return None if matrix.spec.bits in BITS else f"is {matrix.spec}; it takes 2, 4 and 8 bits"


def _remarks(model: Checkpoint) -> list[str]:
    schemes = [view.scheme for view in model.weights.values() if isinstance(view, QuantizedView)]
    rope, said = model.spec.rope, []
    if any(scheme.bits == SLOW for scheme in schemes):
        said.append("at the exact accuracy level it makes float32 of 8 bits at every call, 30 times as slow as 4 bits")
    if not rope.turns_alike(rope.original_max_position_embeddings, model.spec.max_position_embeddings):
        said.append(f"keys of a text that grows beyond {rope.original_max_position_embeddings} tokens stay as turned")
    return said


def _remark(model: Checkpoint) -> str | None:
    return "; ".join(_remarks(model)) or None


def _remark_on_text(model: Checkpoint) -> str:
    return "; ".join((TEXT, *_remarks(model)))


def _check_attention(model: Checkpoint) -> str | None:
    if model.attention == "sparse":
        return "its generator gives a graph none of the buffers that sparse attention remembers by"
    return None


def _usage(model: Checkpoint) -> str:
    return """\
import onnxruntime_genai

model = onnxruntime_genai.Model("FOLDER")
tokenizer = onnxruntime_genai.Tokenizer(model)
settings = onnxruntime_genai.GeneratorParams(model)
settings.set_search_options(max_length=64)
generator = onnxruntime_genai.Generator(model, settings)
generator.append_tokens(tokenizer.encode("The sky is"))
while not generator.is_done():
    generator.generate_next_token()
print(tokenizer.decode(generator.get_sequence(0)))"""


ONNXRUNTIME = KernelRules(
    name="onnxruntime",
    engine="onnxruntime",
    containers=("onnx",),
    check=_check,
    remark=_remark,
)
GENAI = KernelRules(
    name="onnxruntime-genai",
    engine="onnxruntime-genai",
    usage=_usage,
    containers=("onnx",),
    check=_check,
    check_model=_check_attention,
    remark=_remark_on_text,
)
KERNELS = (ONNXRUNTIME, GENAI)
