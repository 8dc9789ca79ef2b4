"""Recipes: what a file may say, which rule decides which weight, and that a run follows it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.calibration.samples import Samples, make_samples
from quantkit.cli.app import main
from quantkit.errors import BadOption, MalformedFile, QuantkitError, UnsupportedSpec
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.loading import load_model
from quantkit.models.recognition import parse_config
from quantkit.models.spec import Role
from quantkit.pipeline.recipe import Assignment, Recipe, Rule
from quantkit.protocols import ExportOptions
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.rounding import round_to_nearest
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView, TensorView
from quantkit.verification.metrics import compared
from tests.support.memory import memory_checkpoint, random_arrays, tiny_config
from tests.support.runs import quantized

INT3, INT4, INT8 = (AffineGroups(bits=bits, group_size=32) for bits in (3, 4, 8))
UNTIED = tiny_config(tie_word_embeddings=False)
BLOCK_0 = "model.layers.0"
DOWN_0, DOWN_1, DOWN_2 = (f"model.layers.{layer}.mlp.down_proj.weight" for layer in range(3))
EMBEDDING = "model.embed_tokens.weight"
Q_0, Q_1, HEAD = f"{BLOCK_0}.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.weight", "lm_head.weight"
DOCS = Path(__file__).resolve().parents[2] / "docs" / "recipes.md"


def written(folder: Path, text: str) -> Path:
    path = folder / "mixed.toml"
    path.write_text(text, encoding="utf-8")
    return path


def recipe(*rules: dict[str, object]) -> Recipe:
    return Recipe.from_json({"rule": list(rules)})


def assigned(*rules: dict[str, object], config: dict[str, object] = UNTIED) -> dict[str, Assignment]:
    return recipe(*rules).assign(parse_config(config), INT4, "gptq")


def samples(*lengths: int) -> Samples:
    rng = np.random.default_rng(5)
    return make_samples([rng.integers(0, 97, length) for length in lengths], source="text", digest="0" * 64)


def same(one: QuantizedTensor, other: QuantizedTensor) -> bool:
    pairs = ((one.codes, other.codes), (one.scale, other.scale), (one.zero, other.zero))
    return all(np.array_equal(a, b) for a, b in pairs)


def read_in_order(checkpoint: Checkpoint) -> dict[str, QuantizedTensor]:
    return {name: view.read() for name, view in checkpoint.weights.items() if isinstance(view, QuantizedView)}


def test_without_rules_every_linear_layer_is_alike_and_the_head_stays():
    found = assigned()
    spec = parse_config(UNTIED)
    assert list(found) == [slot.name for slot in spec.slots() if len(slot.shape) == 2]
    assert found.pop(HEAD).scheme is None
    assert found.pop(EMBEDDING).scheme is None
    assert set(found.values()) == {Assignment(INT4, "gptq")}


def test_the_first_rule_that_matches_decides():
    found = assigned(
        {"role": "down", "match": "model.layers.1.*", "bits": 8},
        {"match": "model.layers.[01].*", "keep": True},
        {"role": ["q", "down"], "method": "rtn", "symmetric": False, "scale_dtype": "bfloat16"},
    )
    assert found[DOWN_1] == Assignment(INT8, "gptq")
    assert found[DOWN_0].scheme is None
    assert found[Q_1].scheme is None
    asym = AffineGroups(bits=4, group_size=32, symmetric=False, scale_dtype="bfloat16")
    assert found[DOWN_2] == Assignment(asym, "rtn")
    assert found["model.layers.2.self_attn.k_proj.weight"] == Assignment(INT4, "gptq")


@pytest.mark.parametrize("pattern", ["*.down_proj", "*.down_proj.weight", "model.layers.?.mlp.down*"])
def test_a_pattern_speaks_of_the_weight_or_of_its_module(pattern: str):
    found = assigned({"match": pattern, "bits": 8})
    assert [name for name, given in found.items() if given.scheme == INT8] == [DOWN_0, DOWN_1, DOWN_2]


@pytest.mark.parametrize(
    ("weight", "rule"),
    [
        (HEAD, {"role": "lm_head"}),
        (HEAD, {"match": "lm_head"}),
        (HEAD, {"match": "lm_head*"}),
        (EMBEDDING, {"role": "embed"}),
        (EMBEDDING, {"match": "model.embed_tokens*"}),
    ],
)
def test_embedding_and_head_are_quantized_only_when_they_are_named(weight: str, rule: dict[str, object]):
    assert assigned({"match": "*", "bits": 8})[weight].scheme is None
    found = assigned({**rule, "bits": 8})
    assert found[weight] == Assignment(INT8, "gptq")
    assert found[HEAD if weight == EMBEDDING else EMBEDDING].scheme is None
    assert assigned({**rule, "bits": 8, "method": "rtn"})[weight] == Assignment(INT8, "rtn")


def test_one_rule_more_is_for_embedding_and_head():
    recipe = Recipe((Rule(roles=(Role.LM_HEAD,), keep=True),)).with_outer(8)
    found = recipe.assign(parse_config(UNTIED), INT4, "gptq")
    assert found[HEAD].scheme is None
    assert found[EMBEDDING] == Assignment(INT8, "gptq")
    tied = Recipe().with_outer(8).assign(parse_config(tiny_config()), INT4, "rtn")
    assert tied[EMBEDDING] == Assignment(INT8, "rtn")


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (({"match": "model.layers.7.*", "bits": 8},), ["rule 1", "nothing", "no linear layer"]),
        (({"match": "*norm*", "keep": True},), ["rule 1", "nothing"]),
        (({"match": "*", "bits": 8}, {"role": "down", "bits": 3}), ["rule 2", "nothing", "before"]),
        (({"role": "lm_head", "bits": 8},), ["rule 1", "nothing", "embedding"]),
    ],
)
def test_a_rule_that_decides_nothing_is_refused(rules: tuple[dict[str, object], ...], words: list[str]):
    with pytest.raises(BadOption) as refused:
        assigned(*rules, config=tiny_config())
    assert all(word in str(refused.value) for word in words), str(refused.value)


@pytest.mark.parametrize(
    ("text", "words", "error"),
    [
        ("[[rule]\n", ["mixed.toml", "not TOML", "line 1"], MalformedFile),
        ("x = " + "[\n" * 5000, ["mixed.toml", "not TOML"], MalformedFile),
        ("rules = []", ["mixed.toml", "rules"], BadOption),
        ("rule = 3", ["mixed.toml", "list of tables"], BadOption),
        ("[rule]\nbits = 4", ["list of tables"], BadOption),
        ("[[rule]]\nbits = 4", ["mixed.toml: rule 1", "neither role nor match"], BadOption),
        ('[[rule]]\nrole = "down"', ["rule 1", "sets nothing"], BadOption),
        ('[[rule]]\nrole = "down"\nkeep = false', ["rule 1", "sets nothing"], BadOption),
        ('[[rule]]\nrole = "down"\nkeep = true\nbits = 4', ["rule 1", "keep"], BadOption),
        ('[[rule]]\nrole = "down"\nbits = 4\n[[rule]]\nrole = "q"\ngroup = 3', ["rule 2", "'group'"], BadOption),
        ('[[rule]]\nrole = "down"\nbits = true', ["rule 1", "bits", "integer"], BadOption),
        ('[[rule]]\nrole = "down"\nbits = "4"', ["rule 1", "bits", "integer"], BadOption),
        ('[[rule]]\nrole = "down"\nsymmetric = 1', ["rule 1", "symmetric", "true or false"], BadOption),
        ('[[rule]]\nrole = "down"\nmatch = 1\nbits = 4', ["rule 1", "match", "string"], BadOption),
        ('[[rule]]\nmatch = ""\nbits = 4', ["rule 1", "match"], BadOption),
        ('[[rule]]\nrole = "dwon"\nbits = 4', ["rule 1", "dwon"], BadOption),
        ('[[rule]]\nrole = "norm"\nbits = 4', ["rule 1", "norm"], BadOption),
        ('[[rule]]\nrole = []\nbits = 4', ["rule 1", "role"], BadOption),
        ('[[rule]]\nrole = ["q", "q"]\nbits = 4', ["rule 1", "once"], BadOption),
        ('[[rule]]\nrole = [1]\nbits = 4', ["rule 1", "role"], BadOption),
        ('[[rule]]\nrole = "down"\nmethod = "magic"', ["rule 1", "magic"], BadOption),
        ('[[rule]]\nrole = "down"\nbits = 9', ["mixed.toml: rule 1", "bits"], UnsupportedSpec),
        ('[[rule]]\nrole = "down"\nscale_dtype = "int3"', ["rule 1", "int3"], UnsupportedSpec),
        ('[[rule]]\nrole = "down"\ngroup_size = 0', ["rule 1", "group_size"], UnsupportedSpec),
    ],
)  # fmt: skip
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, text: str, words: list[str], error: type[QuantkitError]):
    with pytest.raises(error) as refused:
        Recipe.read(written(tmp_path, text))
    assert all(word in str(refused.value) for word in words), str(refused.value)
    assert str(refused.value).isprintable()


def test_groups_that_do_not_divide_name_rule_and_weight():
    with pytest.raises(UnsupportedSpec, match=rf"recipe: rule 2: {re.escape(DOWN_0)}: 96 columns"):
        assigned({"role": "q", "bits": 3}, {"role": "down", "group_size": 64})


def test_a_recipe_comes_back_from_json(tmp_path: Path):
    text = '[[rule]]\nrole = "down"\nmatch = "*.1.*"\nbits = 8\nsymmetric = false\n[[rule]]\nmatch = "*"\nkeep = true\n'
    read = Recipe.read(written(tmp_path, text))
    assert Recipe.from_json(json.loads(json.dumps(read.to_json()))) == read
    assert read.to_json() == {
        "rule": [
            {"role": ["down"], "match": "*.1.*", "bits": 8, "symmetric": False},
            {"match": "*", "keep": True},
        ]
    }
    assert read != Recipe()


def test_the_example_of_the_page_is_a_recipe(tmp_path: Path, golden_model: Path):
    example = re.search(r"```toml\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert example is not None
    made = Recipe.read(written(tmp_path, example[1]))
    spec = registry.open_checkpoint(golden_model).spec
    found = made.assign(spec, AffineGroups(bits=4, group_size=128), "gptq")
    last = f"model.layers.{spec.num_hidden_layers - 1}.mlp"
    assert found[f"{last}.down_proj.weight"] == Assignment(AffineGroups(bits=8, group_size=128), "rtn")
    assert found[f"{last}.up_proj.weight"].scheme == AffineGroups(bits=4, group_size=64)
    assert found[Q_0].scheme is None
    assert found[Q_1].scheme == AffineGroups(bits=4, group_size=128)


def test_a_calibrated_run_follows_the_recipe_and_calibrates_on_it():
    arrays = random_arrays(parse_config(UNTIED))
    source = memory_checkpoint(UNTIED, arrays)
    rules = recipe(
        {"match": f"{BLOCK_0}.*", "keep": True},
        {"role": "q", "method": "rtn"},
        {"role": "lm_head", "bits": 8, "method": "rtn"},
        {"role": "down", "bits": 3},
    )
    run = quantized(source, INT4, "gptq", recipe=rules, calibration=samples(40, 30))
    found = read_in_order(run.checkpoint)
    assert not any(name.startswith(BLOCK_0) for name in found)
    assert run.checkpoint.weights[Q_0] is source.weights[Q_0]
    assert same(found[Q_1], round_to_nearest(arrays[Q_1], INT4))
    assert same(found[HEAD], round_to_nearest(arrays[HEAD], INT8))
    assert found[DOWN_1].scheme.bits == 3
    report = run.report()
    assert report["recipe"] == rules.to_json()
    assert set(report["tensors"]) == set(found)


def test_kept_weights_are_used_as_they_are_in_front_of_calibrated_ones():
    """Where nothing before a layer is quantized there is nothing to make up for: propagation changes no code."""
    source, up = memory_checkpoint(tiny_config()), "model.layers.2.mlp.up_proj.weight"
    kept = recipe({"match": "model.layers.[01].*", "keep": True}, {"role": ["q", "k", "v", "o", "gate"], "keep": True})

    def codes(rules: Recipe | None, *, propagate: bool) -> np.ndarray:
        rows = samples(240, 230)
        run = quantized(source, INT4, "gptq", recipe=rules, calibration=rows, propagate=propagate)
        return run.checkpoint.weights[up].read().codes

    assert np.array_equal(codes(kept, propagate=True), codes(kept, propagate=False))
    assert not np.array_equal(codes(None, propagate=True), codes(None, propagate=False))


def test_a_rounded_weight_is_seen_by_the_calibrated_ones_behind_it():
    source = memory_checkpoint(tiny_config())
    rounded = recipe({"match": "model.layers.1.*", "method": "rtn"})
    mixed = read_in_order(quantized(source, INT4, "gptq", recipe=rounded, calibration=samples(40, 30)).checkpoint)
    usual = read_in_order(quantized(source, INT4, "gptq", calibration=samples(40, 30)).checkpoint)
    assert same(mixed[DOWN_0], usual[DOWN_0])
    assert same(mixed[DOWN_1], round_to_nearest(source.weights[DOWN_1].read(), INT4))
    assert not same(mixed[DOWN_2], usual[DOWN_2])


@pytest.mark.parametrize("tied", [True, False])
def test_embedding_and_head_are_calibrated_on_what_they_do_to_the_predictions(tied: bool) -> None:
    """They lie nearer to the original, as the predictions see it, than rounded ones, and blocks begin with them."""
    source = memory_checkpoint(tiny_config() if tied else UNTIED)
    original = load_model(source)
    outer = recipe({"role": "embed" if tied else ["embed", "lm_head"], "bits": 3})
    keep = Rule(match="model.layers.*", keep=True)
    calibrated = Recipe((*outer.rules, keep))
    rounded = Recipe((*(replace(rule, method="rtn") for rule in outer.rules), keep))
    rows = samples(*[60] * 40)

    def divergence(rules: Recipe) -> float:
        made = load_model(quantized(source, INT3, "gptq", recipe=rules, calibration=rows).checkpoint)
        texts = [torch.from_numpy(ids)[None] for ids in samples(200, 201).sequences]
        found = [compared(original(ids)[0].numpy(), made(ids)[0].numpy())[0].kl for ids in texts]
        return float(np.mean(found))

    assert divergence(calibrated) < 0.8 * divergence(rounded)

    plain = read_in_order(quantized(source, INT4, "gptq", calibration=rows).checkpoint)
    behind = read_in_order(quantized(source, INT4, "gptq", recipe=outer, calibration=rows).checkpoint)
    assert not same(behind[Q_0], plain[Q_0]), "the first block does not see the quantized embedding"


def test_a_run_in_which_nothing_is_calibrated_needs_no_calibration():
    source = memory_checkpoint(tiny_config())
    run = quantized(source, INT4, "gptq", recipe=recipe({"match": "*", "method": "rtn"}))
    run.calibrate()
    assert same(run.checkpoint.weights[DOWN_2].read(), round_to_nearest(source.weights[DOWN_2].read(), INT4))


def test_mixed_grids_and_kept_layers_come_back_from_disk(tmp_path: Path):
    source = memory_checkpoint(UNTIED)
    rules = recipe(
        {"match": f"{BLOCK_0}.*", "keep": True}, {"role": "down", "bits": 8}, {"role": "lm_head", "symmetric": False}
    )
    run = quantized(source, INT4, "rtn", recipe=rules)
    out = tmp_path / "mixed"
    publish(registry.exporter("compressed-tensors").prepare(run.checkpoint, ExportOptions()), out, report=run.report)
    back = registry.open_checkpoint(out)
    for name, weight in run.checkpoint.weights.items():
        found = back.weights[name]
        if isinstance(weight, TensorView):
            assert isinstance(found, TensorView)
            assert np.array_equal(found.read(), weight.read())
        else:
            assert isinstance(found, QuantizedView)
            assert found.scheme == weight.scheme
            assert same(found.read(), weight.read())
    assert Recipe.from_json(json.loads((out / "quantkit.json").read_text())["report"]["recipe"]) == rules


def test_the_command_line_takes_a_recipe(tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]):
    path = written(tmp_path, '[[rule]]\nrole = "down"\nbits = 8\n')
    command = ["quantize", str(tiny_checkpoint), "--method", "rtn", "--out", str(tmp_path / "out"), "--recipe"]
    assert main([*command, str(path)]) == 0
    weights = registry.open_checkpoint(tmp_path / "out").weights
    assert weights[DOWN_1].scheme.bits == 8
    assert weights[Q_1].scheme.bits == 4
    capsys.readouterr()
    command[command.index("--out") + 1] = str(tmp_path / "other")
    bad = written(tmp_path, '[[rule]]\nrole = "down"\nbit = 8\n')
    assert main([*command, str(bad)]) == 2
    assert "mixed.toml: rule 1: unknown key 'bit'" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "absent.toml")]) == 2
    assert "absent.toml" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
