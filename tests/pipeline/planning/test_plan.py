"""Plans: what they promise is what is written, and what cannot be is refused before anything is read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quantkit import registry
from quantkit.artifacts.manifest import manifest_path
from quantkit.artifacts.publishing import publish
from quantkit.cli.app import main
from quantkit.errors import BadOption, UnsupportedSpec
from quantkit.files.planned_files import PlannedArtifact
from quantkit.models.spec import Role
from quantkit.pipeline.card.planned import with_card, with_head
from quantkit.pipeline.options import QuantizeOptions
from quantkit.pipeline.planning.attention import attention_line
from quantkit.pipeline.planning.plan import Plan, parse_target, plan
from quantkit.pipeline.quantization import Quantization
from quantkit.pipeline.recipe import Recipe
from quantkit.protocols import ExportOptions
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import TensorView
from tests.support.memory import memory_checkpoint, tiny_config
from tests.support.runs import quantized
from tests.support.tiny import write_tiny_checkpoint

INT4 = AffineGroups(bits=4, group_size=128)
UP_0, K_1 = "model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.k_proj.weight"
MIXED = Recipe.from_json({"rule": [{"role": "down", "bits": 8}, {"match": "model.layers.0.*", "keep": True}]})
FUSED_APART = '[[rule]]\nmatch = "model.layers.1.self_attn.k_proj"\ngroup_size = 64\n'


def planned_for(folder: Path, *targets: str, recipe: Recipe | None = None, spec: AffineGroups = INT4) -> Plan:
    return plan(folder, targets, QuantizeOptions(method="rtn", scheme=spec, recipe=recipe or Recipe()))


def with_its_card(run: Quantization, name: str, options: ExportOptions) -> PlannedArtifact:
    planned = registry.exporter(name).prepare(with_head(run.checkpoint, run.about(), name), options)
    return with_card(planned, run.checkpoint, run.about(), run.report)


def size_on_disk(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.iterdir() if file != manifest_path(path)]
    return sum(file.stat().st_size for file in files)


@pytest.mark.parametrize("target", ["compressed-tensors", "gptq", "awq", "marlin", "gguf:q4_0", "gguf:f16", "hf:bf16"])
def test_the_planned_size_is_what_is_written(target: str, tiny_checkpoint: Path, tmp_path: Path):
    (found,) = planned_for(tiny_checkpoint, target).targets
    assert found.refusal is None
    name, options = parse_target(target)
    run = quantized(registry.open_checkpoint(tiny_checkpoint), INT4, "rtn")
    out = tmp_path / "out-marlin.gguf"
    publish(with_its_card(run, name, options), out)
    assert found.size == size_on_disk(out)


def test_the_planned_size_follows_the_recipe(tiny_checkpoint: Path, tmp_path: Path):
    made = planned_for(tiny_checkpoint, "compressed-tensors", recipe=MIXED)
    run = quantized(registry.open_checkpoint(tiny_checkpoint), INT4, "rtn", recipe=MIXED)
    out = tmp_path / "mixed"
    name, options = parse_target("compressed-tensors")
    publish(with_its_card(run, name, options), out)
    assert made.targets[0].size == size_on_disk(out)
    assert made.targets[0].size != planned_for(tiny_checkpoint, "compressed-tensors").targets[0].size
    assert made.tensors == {"bfloat16": 12, "int8 g128 sym": 2, "int4 g128 sym": 6}
    by_name = {weight.name: weight for weight in made.weights}
    assert (by_name[UP_0].type, by_name[UP_0].method) == ("bfloat16", None)
    assert (by_name[K_1].type, by_name[K_1].method) == ("int4 g128 sym", "rtn")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gptq", (None, None)),
        ("gptq:v2", ("v2", None)),
        ("gptq:v2:4", ("v2", 4)),
        ("gptq::8", (None, 8)),
        ("compressed-tensors::2", (None, 2)),
    ],
)
def test_a_target_may_name_a_type_and_the_width_of_codes(text: str, expected: tuple[str | None, int | None]):
    _, options = parse_target(text)
    assert (options.type, options.bits) == expected


@pytest.mark.parametrize("text", ["gptq::5", "gptq:v2:x", "gptq:v2:4:4", "gptq::04", "awq::8", "hf::4", "gguf:q4_0:4"])
def test_a_width_that_a_container_does_not_have_is_refused_with_those_that_it_has(text: str):
    with pytest.raises(BadOption, match="has no choice of") as refusal:
        parse_target(text)
    assert (refusal.value.hint or "").startswith(f"widths of {text.partition(':')[0]}: ")


def test_a_width_beside_the_text_is_for_a_text_without_one():
    assert parse_target("gptq:v1", ExportOptions(bits=4))[1].bits == 4
    assert parse_target("gptq:v1:8", ExportOptions(bits=4))[1].bits == 8
    with pytest.raises(BadOption, match="hf has no choice of 4 bits"):
        parse_target("hf", ExportOptions(bits=4))


def test_a_plan_tells_which_blocks_hold_ternary_codes(tiny_checkpoint: Path):
    """And a scale for every 128 weights has no place in a block of 256, which one has says the hint."""
    row, narrow = (AffineGroups(bits=2, group_size=size, ternary=True) for size in (-1, 128))
    (default,) = planned_for(tiny_checkpoint, "gguf", spec=row).targets
    assert (default.type, default.refusal, default.loads_in) == ("tq2_0", None, "loads in: llama-cpp, reference")
    default, refused = planned_for(tiny_checkpoint, "gguf", "gguf:tq2_0", spec=narrow).targets
    assert (default.type, default.refusal) == ("q2_0", None)
    assert any("llama.cpp reads q2_0 since" in note for note in default.notes)
    assert refused.refusal is not None
    assert refused.refusal.startswith("model.layers.0.self_attn.q_proj.weight: gguf cannot carry ternary g128 as tq2_0")
    assert "groups of 128 with a scale each do not share a TQ2_0 block of 256" in refused.refusal
    assert (refused.hint or "").startswith("choose type q2_0 or q4_0")


@pytest.mark.parametrize(("group", "smallest", "fastest"), [(-1, "tq1_0", "tq2_0"), (64, "q2_0", "q4_0")])
def test_the_smallest_blocks_are_not_the_fastest(group: int, smallest: str, fastest: str, tiny_checkpoint: Path):
    kinds = [f"gguf:{kind}" for kind in ("q4_0", "q2_0", "tq1_0", "tq2_0")]
    made = planned_for(tiny_checkpoint, *kinds, spec=AffineGroups(bits=2, group_size=group, ternary=True))
    (found,) = made.best
    assert (found.engine, found.smallest, found.fastest) == ("llama-cpp", f"gguf:{smallest}", f"gguf:{fastest}")


def test_a_plan_reads_no_tensor():
    source = memory_checkpoint(tiny_config(hidden_size=256, intermediate_size=512))

    def explode(start: int, stop: int) -> np.ndarray:
        raise AssertionError("a plan reads headers only")

    views = {name: replace(v, fetch=explode) for name, v in source.weights.items() if isinstance(v, TensorView)}
    targets = ("compressed-tensors", "gptq", "awq", "gguf:f16", "hf")
    for method in ("rtn", "gptq"):
        made = plan(replace(source, weights=views), targets, QuantizeOptions(method=method, scheme=INT4))
        assert made.possible, [target.refusal for target in made.targets]


def test_calibration_costs_memory_only_where_something_is_calibrated(tiny_checkpoint: Path):
    source = registry.open_checkpoint(tiny_checkpoint)
    rounding = Recipe.from_json({"rule": [{"match": "*", "method": "rtn"}]})
    peaks = [
        plan(source, [], QuantizeOptions(method=method, scheme=INT4, recipe=recipe)).peak_memory_bytes
        for method, recipe in (("rtn", Recipe()), ("gptq", rounding), ("gptq", Recipe()))
    ]
    assert peaks[0] == peaks[1] < peaks[2]


def test_what_a_container_cannot_hold_is_refused_with_tensor_and_hint(tiny_checkpoint: Path):
    made = planned_for(tiny_checkpoint, "compressed-tensors", "gptq", "awq", "marlin", recipe=MIXED)
    refusals = {target.format: target.refusal or "" for target in made.targets}
    assert refusals["compressed-tensors"] == refusals["gptq"] == ""
    assert refusals["awq"].startswith("model.layers.0.mlp.down_proj.weight: awq holds 4 bits only")
    assert refusals["marlin"].startswith("model.layers.0.self_attn.q_proj.weight is dense")
    assert all(target.hint for target in made.targets if target.refusal)
    assert not made.possible


def test_a_recipe_that_does_not_fit_the_model_is_refused(tiny_checkpoint: Path):
    bad = Recipe.from_json({"rule": [{"match": "model.layers.9.*", "bits": 8}]})
    with pytest.raises(BadOption, match="rule 1 decides nothing"):
        planned_for(tiny_checkpoint, "gptq", recipe=bad)
    wide = Recipe.from_json({"rule": [{"role": "down", "group_size": 1024}]})
    with pytest.raises(UnsupportedSpec, match=r"rule 1: model\.layers\.0\.mlp\.down_proj\.weight: 512 columns"):
        planned_for(tiny_checkpoint, "gptq", recipe=wide)


def test_every_target_says_which_kernels_take_it(tiny_checkpoint: Path):
    made = planned_for(tiny_checkpoint, "compressed-tensors", "gptq", "marlin", "gguf:q8_0", "hf")
    asked = {target.format: {verdict.kernel for verdict in target.kernels} for target in made.targets}
    assert asked == {
        "compressed-tensors": {"vllm-cpu", "vllm-cuda-marlin", "transformers"},
        "gptq": {"vllm-cpu", "vllm-cuda-marlin", "gptqmodel-torch"},
        "marlin": {"cpm.cu"},
        "gguf": {"llama.cpp"},
        "hf": {"vllm-cpu", "vllm-cuda-marlin", "transformers"},
    }
    refusing = {verdict.kernel for target in made.targets for verdict in target.kernels if verdict.refusal}
    assert refusing == {"transformers", "gptqmodel-torch"}  # no class for a native MiniCPM
    engines = {target.format: target.engines for target in made.targets}
    assert engines["gptq"] == engines["hf"] == ("vllm", "reference")
    assert engines["marlin"] == ("cpm.cu", "reference")


def test_a_head_of_73448_rows_is_named_before_any_work(tmp_path: Path):
    folder = write_tiny_checkpoint(
        tmp_path / "wide", layers=1, hidden=64, intermediate=128, heads=2, kv_heads=1, vocab=73448, tie=False
    )
    head = Recipe.from_json({"rule": [{"role": "lm_head", "bits": 4}]})
    made = planned_for(folder, "compressed-tensors", recipe=head, spec=AffineGroups(bits=4, group_size=32))
    refusals = {verdict.kernel: verdict.refusal or "" for verdict in made.targets[0].kernels}
    assert refusals["vllm-cuda-marlin"].startswith("lm_head.weight is 73448 x 64")
    assert refusals["vllm-cpu"].startswith("lm_head.weight is int4")


def test_the_command_line_shows_the_recipe_and_who_refuses_it(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    recipe = tmp_path / "apart.toml"
    recipe.write_text(FUSED_APART)
    command = ["plan", str(tiny_checkpoint), "--method", "rtn", "--recipe", str(recipe), "--to", "compressed-tensors"]
    assert main([*command, "--tensors"]) == 0
    shown = capsys.readouterr().out
    first = f"{K_1} is int4 g64 sym and {K_1.replace('k_proj', 'q_proj')} int4 g128 sym, which it makes one matrix of"
    assert f"compressed-tensors: vllm-cpu refuses: {first}\n" in shown
    assert "compressed-tensors loads in: reference (transformers: needs --arch llama; vllm-cpu: refuses it; " in shown
    (listed,) = [line.split() for line in shown.splitlines() if line.startswith(K_1)]
    assert listed == [K_1, "128", "x", "256", "int4", "g64", "sym", "rtn"]
    assert main([*command, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    kernels = {verdict["kernel"]: verdict["refusal"] for verdict in data["targets"][0]["kernels"]}
    assert kernels["vllm-cpu"] == first
    assert {one["type"]: one["count"] for one in data["tensors"]} == {
        "bfloat16": 6,
        "int4 g128 sym": 13,
        "int4 g64 sym": 1,
    }
    assert len(data["weights"]) == 20
    assert main([*command[:2], "--recipe", str(recipe), "--to", "hf"]) == 2
    assert "--method" in capsys.readouterr().err


def test_gptq_refuses_what_engines_fuse_before_any_work(tiny_checkpoint: Path):
    apart = Recipe.from_json({"rule": [{"role": Role.K.value, "group_size": 64}]})
    for target in planned_for(tiny_checkpoint, "gptq", "awq", recipe=apart).targets:
        assert target.refusal is not None
        assert "k_proj" in target.refusal


def sparse_folder(folder: Path, **shape: int) -> Path:
    write_tiny_checkpoint(folder, context=1 << 17, config_overrides={"sparse_config": {}}, **shape)
    return folder


def test_what_sparse_attention_costs_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = sparse_folder(tmp_path / "model")
    made = plan(folder, ["gguf", "hf"])
    assert [(cost.length, cost.attended) for cost in made.attention_costs] == [
        (8192, 6144),
        (32768, 6144),
        (131072, 6144),
    ]
    assert made.attention_costs[2].share < 0.05
    assert made.attention_costs[2].keys_and_values == 2 * 131072 * 2 * 2 * 64 * 2
    assert main(["plan", str(folder), "--to", "gguf"]) == 0
    shown = capsys.readouterr().out
    assert "tokens attended: 0.75 of 8K, 0.188 of 32K, 0.0469 of 128K" in shown
    assert main(["plan", str(folder), "--to", "gguf", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["attention_costs"][0]["attended"] == 6144
    assert plan(write_tiny_checkpoint(tmp_path / "dense"), ["gguf"]).attention_costs == ()


def test_who_ignores_sparse_config_is_named(tmp_path: Path):
    folder = sparse_folder(tmp_path / "model")
    lines = {target.format: str(target.attention) for target in plan(folder, ["hf", "gguf", "onnx"]).targets}
    assert lines["gguf"] == (
        "reference attends sparsely (with --attention sparse); densely, without regard to sparse_config: llama-cpp"
    )
    assert lines["hf"].endswith("densely, without regard to sparse_config: vllm")
    assert lines["onnx"].endswith("sparse_config: onnxruntime, onnxruntime-genai, onnx-numpy")


def test_cpm_cu_attends_sparsely_where_its_kernels_can(tmp_path: Path):
    wide = sparse_folder(tmp_path / "wide", heads=16, kv_heads=1, hidden=512)
    (marlin,) = planned_for(wide, "marlin").targets
    assert "cpm.cu attends sparsely (as variant cpm.cu" in str(marlin.attention)
    (marlin,) = planned_for(sparse_folder(tmp_path / "narrow"), "marlin").targets
    assert str(marlin.attention).endswith("densely, without regard to sparse_config: cpm.cu")


def test_a_folded_model_has_no_sparse_attention(tmp_path: Path):
    folder = sparse_folder(tmp_path / "model")
    for target in plan(folder, [parse_target("gguf", ExportOptions(arch="llama")), "mlx"]).targets:
        assert target.attention is None
        assert "folded into a Llama, which has no sparse attention: sparse_config is left out" in target.notes


def test_a_graph_that_attends_sparsely_says_so(tmp_path: Path):
    checkpoint = registry.open_checkpoint(sparse_folder(tmp_path / "model"))
    artifact = registry.exporter("onnx").prepare(checkpoint, parse_target("onnx")[1])
    graph = replace(artifact, options={**artifact.options, "attention": "sparse"})
    assert attention_line(checkpoint, graph, ("onnxruntime",), ()) == (
        "attends sparsely in every engine: its graph says how"
    )
