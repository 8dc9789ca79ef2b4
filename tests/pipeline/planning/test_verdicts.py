"""What is said to load an artifact, held against the engine itself where it runs here."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.cli.app import main
from quantkit.errors import UnsupportedModel
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.folding import with_architecture
from quantkit.pipeline.options import QuantizeOptions
from quantkit.pipeline.planned_model import planned
from quantkit.pipeline.planning.plan import parse_target, plan
from quantkit.pipeline.planning.verdicts import as_written, loading_line, verdicts
from quantkit.pipeline.recipe import Recipe
from quantkit.protocols import ExportOptions, Verdict
from quantkit.runtimes._kernels._rules import KernelRules
from quantkit.tensors.schemes.affine_groups import AffineGroups
from tests.support.memory import memory_checkpoint, tiny_config
from tests.support.runs import quantized

MODEL = Path(__file__).resolve().parents[3] / "golden" / "model"
SYM4, ASYM4 = AffineGroups(bits=4, group_size=128), AffineGroups(bits=4, group_size=128, symmetric=False)
CT = "compressed-tensors"


def verdict(kernel: str, **said: str | None) -> Verdict:
    return Verdict(kernel=kernel, engine=kernel.partition("-")[0], **said)


def test_the_line_names_takers_settings_and_what_mends():
    found = [
        verdict("vllm-cpu", refusal="is int8"),
        verdict("vllm-cuda", setting="--trust-remote-code", remark="pads 3 matrices"),
        verdict("transformers", refusal="no class", mend="--arch llama"),
    ]
    assert loading_line(CT, found) == (
        "loads in: vllm-cuda with --trust-remote-code, reference "
        "(vllm-cpu: refuses it; transformers: needs --arch llama)"
    )
    taker = Verdict(kernel="llama.cpp", engine="llama-cpp")
    assert loading_line("gguf", [taker]) == "loads in: llama-cpp, reference"
    assert loading_line("marlin", [verdict("cpm.cu", refusal="is int3")]) == "loads in: reference (cpm.cu: refuses it)"


def test_a_model_that_cannot_be_folded_is_refused_without_a_mend():
    config = tiny_config(rms_norm_eps=0.1, scale_depth=0.75 * 3**0.5)
    model = replace(memory_checkpoint(config), format="hf")
    with pytest.raises(UnsupportedModel, match="folding makes rms_norm_eps"):
        model.spec.folded()
    found = {verdict.kernel: verdict for verdict in verdicts(model)}
    assert "no class for a native MiniCPM" in (found["transformers"].refusal or "")
    assert found["transformers"].mend is None
    foldable = replace(memory_checkpoint(tiny_config()), format="hf")
    assert {verdict.kernel: verdict for verdict in verdicts(foldable)}["transformers"].mend == "--arch llama"


def test_a_head_that_the_container_keeps_dense_is_no_matter():
    config = tiny_config(hidden_size=256, intermediate_size=512, tie_word_embeddings=False)
    source = with_architecture(memory_checkpoint(config), "llama")
    head = Recipe.from_json({"rule": [{"role": "lm_head", "bits": 4}]})
    model = planned(source, head.assign(source.spec, AffineGroups(bits=4, group_size=64), "rtn"))
    refusals = {}
    for container in (CT, "gptq", "awq", "hf"):
        artifact = registry.exporter(container).prepare(model, ExportOptions())
        refusals[container] = {v.kernel: v.refusal for v in verdicts(as_written(model, artifact))}
    assert refusals[CT]["vllm-cpu"] == "lm_head.weight is int4 g64 sym; it takes a dense head only"
    assert refusals["gptq"]["vllm-cpu"] is refusals["awq"]["vllm-cpu"] is refusals["hf"]["vllm-cpu"] is None


def test_folding_is_offered_only_where_it_helps():
    source = memory_checkpoint(tiny_config(hidden_size=256, intermediate_size=512))
    for grid, recipe, mend in ((SYM4, None, "--arch llama"), (ASYM4, {"role": "o", "bits": 8}, None)):
        rules = Recipe.from_json({"rule": [recipe] if recipe else []})
        (made,) = plan(source, [CT], QuantizeOptions(method="rtn", scheme=grid, recipe=rules)).targets
        (said,) = [v for v in made.kernels if v.kernel == "transformers"]
        assert said.refusal is not None
        assert said.mend == mend


TERNARY = AffineGroups(bits=2, group_size=64, ternary=True)


def test_wider_codes_are_offered_where_they_make_an_engine_take_a_model():
    source = memory_checkpoint(tiny_config(hidden_size=256, intermediate_size=512))
    options = QuantizeOptions(method="rtn", scheme=TERNARY)
    for container, arch, mends in (
        ("gptq", "native", {"vllm-cpu": "export --bits 4", "gptqmodel-torch": "--arch llama"}),
        (CT, "llama", {"vllm-cpu": "export --bits 4", "vllm-cuda-marlin": "export --bits 4", "transformers": None}),
        ("gptq::4", "native", {"vllm-cpu": None, "gptqmodel-torch": "--arch llama"}),
        ("awq", "native", {"vllm-cpu": None, "vllm-cuda-marlin": None}),
    ):
        (made,) = plan(source, [parse_target(container, ExportOptions(arch=arch))], options).targets
        assert made.bits == (4 if "::" in container else None)
        said = {verdict.kernel: verdict.mend for verdict in made.kernels}
        assert {kernel: said[kernel] for kernel in mends} == mends, container
    uneven = QuantizeOptions(method="rtn", scheme=replace(TERNARY, group_size=16))
    (made,) = plan(source, ["gptq"], uneven).targets
    (said,) = [verdict for verdict in made.kernels if verdict.kernel == "vllm-cpu"]
    assert (said.refusal or "").endswith("it takes 4 bits only")
    assert said.mend is None, "groups of 16 stay groups of 16"


def test_both_are_offered_where_both_are_needed():
    model = planned_ternary(TERNARY)
    kernel = KernelRules(
        name="k", engine="e", containers=(CT,), architectures=("llama",),
        check=lambda matrix: None if matrix.spec.bits == 4 else "is narrow",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "kernels", lambda container, target: (kernel,))
        (found,) = verdicts(replace(model, format=CT))
    assert found.mend == "export --bits 4 --arch llama"
    assert loading_line(CT, [found]).endswith("(k: needs export --bits 4 --arch llama)")


def planned_ternary(grid: AffineGroups) -> Checkpoint:
    source = memory_checkpoint(tiny_config(hidden_size=256, intermediate_size=512))
    return planned(source, Recipe().assign(source.spec, grid, "rtn"))


CASES = {
    "dense": ("hf", None),
    "int4 sym": (CT, SYM4),
    "int4 asym": (CT, ASYM4),
    "int3 rows": (CT, AffineGroups(bits=3, group_size=-1)),
    "ternary": (CT, AffineGroups(bits=2, group_size=128, ternary=True)),
}


@pytest.mark.engine("transformers")
@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
@pytest.mark.skipif(
    importlib.util.find_spec("compressed_tensors") is None, reason="compressed-tensors is not installed"
)
@pytest.mark.parametrize("arch", ["native", "llama"])
@pytest.mark.parametrize("case", CASES)
def test_what_a_plan_says_of_transformers_is_what_from_pretrained_does(case: str, arch: str, tmp_path: Path):
    container, grid = CASES[case]
    source = registry.open_checkpoint(MODEL)
    options = QuantizeOptions(method="rtn", scheme=grid) if grid else None
    made = plan(source, [parse_target(container, ExportOptions(arch=arch))], options)
    (said,) = [v for v in made.targets[0].kernels if v.engine == "transformers"]
    model = quantized(with_architecture(source, arch), grid, "rtn").checkpoint if grid else source
    folder = tmp_path / "model"
    publish(registry.exporter(container).prepare(model, ExportOptions(arch=arch)), folder)
    assert loaded(folder) == (said.refusal is None and said.setting is None)
    if said.refusal is None:
        assert loaded(folder, dequantize=said.setting is not None)
    else:
        assert "--arch llama" in made.targets[0].loads_in
        assert not loaded(folder, dequantize=True)
    assert (registry.runtime("transformers").refuses(registry.open_checkpoint(folder)) is None) == (
        said.refusal is None
    )


def loaded(folder: Path, *, dequantize: bool = False) -> bool:
    """Whether transformers loads every tensor of the folder and computes with finite numbers."""
    import torch  # noqa: PLC0415 - heavy, and not everywhere
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig  # noqa: PLC0415

    settings = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if dequantize else {}
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            str(folder), local_files_only=True, dtype=torch.float32, output_loading_info=True, **settings
        )
    except (ValueError, RuntimeError):
        return False
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[1, 2, 3]])).logits
    return not any(report[f"{kind}_keys"] for kind in ("missing", "unexpected", "mismatched")) and bool(
        torch.isfinite(logits).all()
    )


@pytest.mark.parametrize(("arch", "said"), [("native", "(transformers: needs --arch llama)"), ("llama", None)])
def test_plan_quantize_and_export_say_what_loads_the_result(arch: str, said: str | None, tmp_path: Path, capsys):
    line = (
        f"loads in: vllm with --trust-remote-code, reference {said}"
        if said
        else "loads in: transformers, vllm, reference"
    )
    rtn = ["--method", "rtn", "--arch", arch]
    assert main(["plan", str(MODEL), *rtn, "--to", CT]) == 0
    assert f"{CT} {line}\n" in capsys.readouterr().out
    assert main(["quantize", str(MODEL), *rtn, "--out", str(tmp_path / "int4")]) == 0
    assert f"\n{line}\n" in capsys.readouterr().out
    assert main(["export", "hf", str(MODEL), "--arch", arch, "--out", str(tmp_path / "hf"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loads_in"] == line
