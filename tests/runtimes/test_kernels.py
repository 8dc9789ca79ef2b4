"""Which kernels take a model: every rule of the table at its border, and the tensor that breaks it by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from quantkit import registry
from quantkit.errors import UnsupportedSpec
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.folding import folded
from quantkit.models.spec import Role
from quantkit.pipeline.planned_model import planned
from quantkit.pipeline.recipe import Recipe
from quantkit.protocols import ExportOptions, Verdict
from quantkit.runtimes._kernels._rules import KernelRules
from quantkit.tensors.schemes.affine_groups import AffineGroups
from tests.support.memory import memory_checkpoint, tiny_config
from tests.support.quantized_models import Choice, linears, quantized_model

SYM4, SYM8 = AffineGroups(bits=4, group_size=64), AffineGroups(bits=8, group_size=64)
ASYM4 = AffineGroups(bits=4, group_size=64, symmetric=False)
CONFIG = tiny_config(hidden_size=256, intermediate_size=512, num_hidden_layers=2, tie_word_embeddings=False)
CT = "compressed-tensors"
HEAD = "lm_head.weight"
K_1 = "model.layers.1.self_attn.k_proj.weight"


def model(spec: AffineGroups, *rules: dict[str, Any], config: Mapping[str, Any] = CONFIG) -> Checkpoint:
    """A plain Llama, which every engine has a class for."""
    source = folded(memory_checkpoint(config))
    return planned(source, Recipe.from_json({"rule": list(rules)}).assign(source.spec, spec, "rtn"))


def verdicts(checkpoint: Checkpoint, container: str, target: str | None = None) -> dict[str, Verdict]:
    """What every kernel says to a model that lies in `container` as it is."""
    written = replace(checkpoint, format=container)
    return {kernel.name: kernel.verdict(written) for kernel in registry.kernels(container, target)}


def answers(checkpoint: Checkpoint, container: str, target: str | None = None) -> dict[str, str | None]:
    """Kernel to refusal, None where it takes the model."""
    return {name: verdict.refusal for name, verdict in verdicts(checkpoint, container, target).items()}


def takers(checkpoint: Checkpoint, container: str, target: str | None = None) -> set[str]:
    return {kernel for kernel, refusal in answers(checkpoint, container, target).items() if refusal is None}


ALL_GPTQ = {"vllm-cpu", "vllm-cuda-marlin", "gptqmodel-torch"}


@pytest.mark.parametrize(
    ("spec", "container", "expected"),
    [
        (SYM4, "gptq", ALL_GPTQ),
        (SYM4, "awq", {"vllm-cpu", "vllm-cuda-marlin"}),
        (SYM4, CT, {"vllm-cpu", "vllm-cuda-marlin", "transformers"}),
        (ASYM4, "gptq", {"gptqmodel-torch"}),
        (ASYM4, "awq", {"vllm-cpu", "vllm-cuda-marlin"}),
        (ASYM4, CT, {"vllm-cpu", "vllm-cuda-marlin", "transformers"}),
        (SYM8, "gptq", {"vllm-cuda-marlin", "gptqmodel-torch"}),
        (SYM8, CT, {"vllm-cuda-marlin", "transformers"}),
        (AffineGroups(bits=8, group_size=64, symmetric=False), CT, {"transformers"}),
        (AffineGroups(bits=3, group_size=64), "gptq", {"gptqmodel-torch"}),
        (AffineGroups(bits=3, group_size=64), CT, {"transformers"}),
        (AffineGroups(bits=2, group_size=64), "gptq", {"gptqmodel-torch"}),
        (AffineGroups(bits=2, group_size=64, ternary=True), CT, {"transformers"}),
        (AffineGroups(bits=4, group_size=256), CT, {"vllm-cpu", "transformers"}),
        (AffineGroups(bits=4, group_size=-1), "gptq", ALL_GPTQ),
        (AffineGroups(bits=4, group_size=256), "gptq", {"gptqmodel-torch"}),
        (AffineGroups(bits=4, group_size=8), "gptq", set()),
        (AffineGroups(bits=4, group_size=8), CT, {"vllm-cpu", "transformers"}),
        (AffineGroups(bits=4, group_size=1), CT, {"transformers"}),
        (SYM4, "gguf", {"llama.cpp"}),
        (AffineGroups(bits=2, group_size=-1, ternary=True), "gguf", {"llama.cpp"}),
    ],
)
def test_a_grid_is_taken_by(spec: AffineGroups, container: str, expected: set[str]):
    assert takers(model(spec), container) == expected


@pytest.mark.parametrize(
    ("target", "spec", "taken"),
    [
        ("cpm.cu", AffineGroups(bits=4, group_size=128), True),
        ("cpm.cu", AffineGroups(bits=4, group_size=-1), True),
        ("cpm.cu", SYM4, False),
        ("cpm.cu", SYM8, False),
        ("ist", AffineGroups(bits=4, group_size=128), True),
        ("ist", AffineGroups(bits=4, group_size=128, symmetric=False), False),
    ],
)
def test_marlin_is_asked_of_the_target_alone(target: str, spec: AffineGroups, taken: bool):
    config = {**CONFIG, "num_key_value_heads": 4}
    (found,) = answers(model(spec, config=config), "marlin", target).values()
    assert (found is None) is taken


def test_the_kernels_are_no_stricter_than_the_exporter_of_marlin():
    """k and v have 128 rows here: whole tiles where q, k and v are one matrix, but not by themselves for IST's."""
    given = model(AffineGroups(bits=4, group_size=128))
    exporter = registry.exporter("marlin")
    for target, fits in (("cpm.cu", True), ("ist", False)):
        (found,) = answers(given, "marlin", target).values()
        assert (found is None) is fits
        options = ExportOptions(target=target)
        if fits:
            exporter.prepare(given, options)
        else:
            assert found is not None and found.startswith("model.layers.0.self_attn.k_proj.weight is 128 x 256")
            with pytest.raises(UnsupportedSpec):
                exporter.prepare(given, options)


def test_what_vllm_fuses_must_be_on_one_grid():
    mixed = model(SYM4, {"match": K_1, "group_size": 32})
    for kernel in ("vllm-cpu", "vllm-cuda-marlin"):
        refusal = answers(mixed, CT)[kernel]
        assert refusal is not None
        assert refusal.startswith(f"{K_1} is int4 g32 sym and model.layers.1.self_attn.q_proj.weight int4 g64 sym")
    dense = answers(model(SYM4, {"role": "up", "keep": True}), CT)["vllm-cpu"]
    assert dense is not None
    assert dense.startswith("model.layers.0.mlp.up_proj.weight is dense and model.layers.0.mlp.gate_proj.weight int4")
    assert takers(mixed, CT) == {"transformers"}
    assert takers(model(SYM4, {"role": ["gate", "up"], "keep": True}, {"role": "o", "group_size": 32}), CT) == {
        "vllm-cpu",
        "vllm-cuda-marlin",
        "transformers",
    }


def test_the_rows_of_fused_layers_count_together():
    """v and k of 16 rows each: 96 rows with q's 64 are three times 32, while 80 of 64 and one head are not."""
    narrow = {**CONFIG, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 1}
    spec = AffineGroups(bits=4, group_size=32)
    assert answers(model(spec, config=narrow), CT)["vllm-cpu"] is None
    odd = {**narrow, "intermediate_size": 80}
    refusal = answers(model(AffineGroups(bits=4, group_size=16), config=odd), CT)["vllm-cpu"]
    assert refusal == "model.layers.0.mlp.down_proj.weight is 64 x 80; it takes multiples of 32"
    lone = {**narrow, "intermediate_size": 48}
    refusal = answers(model(AffineGroups(bits=4, group_size=16), {"role": "down", "keep": True}, config=lone), CT)
    assert refusal["vllm-cpu"] is None  # gate and up together are 96 rows


@pytest.mark.parametrize(("vocabulary", "taken"), [(73448, False), (73472, True)])
def test_a_head_of_73448_rows_is_named(vocabulary: int, taken: bool):
    config = {**CONFIG, "hidden_size": 64, "vocab_size": vocabulary, "num_hidden_layers": 1}
    given = model(SYM4, {"role": "lm_head", "bits": 4}, config=config)
    found = answers(given, CT)
    assert found["vllm-cpu"] == f"{HEAD} is int4 g64 sym; it takes a dense head only"
    if taken:
        assert found["vllm-cuda-marlin"] is None
    else:
        assert (found["vllm-cuda-marlin"] or "").startswith(
            "lm_head.weight is 73448 x 64; it takes a quantized head in"
        )


def test_marlin_in_vllm_pads_and_says_what():
    narrow = {**CONFIG, "intermediate_size": 544}
    found = verdicts(model(AffineGroups(bits=4, group_size=32), config=narrow), CT)
    assert found["vllm-cuda-marlin"].refusal is None
    remark = found["vllm-cuda-marlin"].remark or ""
    assert remark == "pads 2 matrices at every step (model.layers.0.mlp.down_proj.weight, 256 x 544, ...)"
    assert found["vllm-cpu"].remark is None


def test_llama_cpp_wants_blocks_of_32_columns():
    narrow = {**CONFIG, "intermediate_size": 48}
    found = answers(model(AffineGroups(bits=4, group_size=16), config=narrow), "gguf")
    assert found == {"llama.cpp": "model.layers.0.mlp.down_proj.weight is 256 x 48; it takes multiples of 32 columns"}


ALL_CONTAINERS = registry.names("exporters")


@pytest.mark.parametrize("container", ALL_CONTAINERS)
def test_kernels_follow_the_protocol(container: str):
    for kernel in registry.kernels(container):
        assert isinstance(kernel, KernelRules)
        assert container in kernel.containers
        assert set(kernel.targets) <= set(registry.exporter(container).targets)
        verdict = kernel.verdict(replace(folded(memory_checkpoint(CONFIG)), format=container))
        assert (verdict.kernel, verdict.engine, verdict.mend) == (kernel.name, kernel.engine, None)


def test_every_engine_that_is_run_here_has_kernels_that_read_what_it_says():
    """But for the oracle, and for what does in numpy what another engine does."""
    for name in {name for name in registry.names("runtimes") if not name.endswith("-numpy")} - {"reference"}:
        runtime = registry.runtime(name)
        for container in ALL_CONTAINERS:
            asked = name in {kernel.engine for kernel in registry.kernels(container)}
            assert asked == (container in runtime.formats)


@pytest.mark.parametrize("container", ["hf", CT, "gptq"])
def test_a_native_minicpm_is_taken_by_engines_that_have_its_class(container: str):
    native = replace(memory_checkpoint(CONFIG), format=container)
    found = {kernel.name: kernel.verdict(native) for kernel in registry.kernels(container)}
    assert {name for name, verdict in found.items() if verdict.refusal is None} == {"vllm-cpu", "vllm-cuda-marlin"}
    assert {verdict.setting for verdict in found.values() if verdict.refusal is None} == {"--trust-remote-code"}
    (refusal,) = {verdict.refusal for verdict in found.values() if verdict.refusal is not None} or {None}
    assert refusal == "it has no class for a native MiniCPM"


def test_vllm_takes_no_quantized_embedding_and_no_odd_heads_of_a_minicpm():
    given = folded(quantized_model(CONFIG, lambda slot: SYM4 if slot.role in (Role.EMBED, Role.Q) else None))
    for kernel in ("vllm-cpu", "vllm-cuda-marlin"):
        refusal = answers(given, CT)[kernel]
        assert refusal == "model.embed_tokens.weight is int4 g64 sym; it takes a dense embedding only"
    odd = memory_checkpoint({**CONFIG, "head_dim": 32})
    assert answers(odd, "hf")["vllm-cpu"] == "its MiniCPM takes 256 / 4 channels per head, not 32"
    assert answers(folded(odd), "hf")["vllm-cpu"] is None


@pytest.mark.parametrize(
    ("choose", "setting", "taken"),
    [
        (linears(SYM4), None, True),
        (linears(ASYM4), "CompressedTensorsConfig(dequantize=True)", True),
        (lambda slot: SYM4 if len(slot.shape) == 2 else None, "CompressedTensorsConfig(dequantize=True)", True),
        (lambda slot: {Role.Q: ASYM4, Role.O: SYM4}.get(slot.role), None, False),
    ],
    ids=["symmetric", "asymmetric", "embedding", "two grids"],
)
def test_what_transformers_must_be_told_is_said(choose: Choice, setting: str | None, taken: bool):
    verdict = verdicts(folded(quantized_model(CONFIG, choose)), CT)["transformers"]
    assert ((verdict.refusal is None), verdict.setting) == (taken, setting)
