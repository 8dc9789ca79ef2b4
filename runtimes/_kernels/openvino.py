"""OpenVINO and OpenVINO GenAI: graphs as quantkit writes them, in any width and group of the container.

The exporter stores codes in widths that the CPU computes with as they lie, so there is nothing left to refuse. By
default OpenVINO rounds: activations to bfloat16 where the processor has it, inputs of compressed layers to int8, keys
and values to 8 bits; `EXECUTION_MODE_HINT=ACCURACY` turns all of it off. Measured in tests/runtimes/openvino/.
"""

from __future__ import annotations

from quantkit.models.checkpoint import Checkpoint
from quantkit.runtimes._kernels._rules import KernelRules


def _growing(model: Checkpoint) -> str | None:
    """What LongRoPE and dynamic NTK become in a cache that grows."""
    rope = model.spec.rope
    if rope.turns_alike(1, model.spec.max_position_embeddings):
        return None
    return (
        f"in OpenVINO GenAI a text that grows beyond {rope.original_max_position_embeddings} tokens keeps the keys of "
        "before, turned for the shorter text"
    )


def _usage(model: Checkpoint) -> str:
    return """\
import openvino_genai

pipeline = openvino_genai.LLMPipeline("FOLDER", "CPU")
print(pipeline.generate("The sky is", max_new_tokens=64))"""


OPENVINO = KernelRules(
    title="OpenVINO GenAI",
    usage=_usage,
    name="openvino",
    engine="openvino",
    containers=("openvino",),
    remark=_growing,
)
KERNELS = (OPENVINO,)
