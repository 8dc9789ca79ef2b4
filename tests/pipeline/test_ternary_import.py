"""`quantize --method ternary`: ternary models are taken over without calibration, others are calibrated."""

from __future__ import annotations

import json

import numpy as np
import pytest

from quantkit import registry
from quantkit.errors import BadOption, UnsupportedSpec
from quantkit.models.spec import LINEAR_ROLES
from quantkit.pipeline.options import QuantizeOptions
from quantkit.pipeline.planning.plan import plan
from quantkit.pipeline.planning.recommendation import every_target
from quantkit.pipeline.quantization import Quantization
from quantkit.pipeline.recipe import Recipe
from quantkit.tensors.schemes.affine_groups import TERNARY, AffineGroups
from quantkit.tensors.views import QuantizedView
from tests.support.family import ternary
from tests.support.runs import read_through
from tests.support.tiny import tiny_config, tiny_tensors, write_tensors, write_tiny_checkpoint

DOWN = "model.layers.1.mlp.down_proj.weight"


def model(folder, *, odd: bool = False):
    """A ternary checkpoint; `odd`: but for a value."""
    config = tiny_config()
    tensors = {name: ternary(x) if ".layers." in name else x for name, x in tiny_tensors(config).items()}
    if odd:
        tensors[DOWN].view(np.uint16)[0, np.flatnonzero(tensors[DOWN][0])[0]] ^= 1
    (folder / "config.json").write_text(json.dumps(config))
    write_tensors(folder, tensors)
    return registry.open_checkpoint(folder)


def linears(checkpoint):
    return [slot.name for slot in checkpoint.spec.slots() if slot.role in LINEAR_ROLES]


def test_a_ternary_model_is_taken_over_bit_for_bit_without_calibration(tmp_path):
    source = model(tmp_path)
    run = Quantization(source, QuantizeOptions(method="ternary"))
    made = read_through(run)
    for name in linears(source):
        view = made.weights[name]
        assert isinstance(view, QuantizedView)
        assert view.scheme == AffineGroups(bits=2, group_size=-1, ternary=True)
        assert np.array_equal(view.read().dequantized(), source.weights[name].read().astype(np.float32))
    report = run.report()
    assert report["calibration"] is None
    assert {one["error"] for one in report["tensors"].values()} == {0.0}
    assert any("14 of 14 linear weights are ternary" in note for note in run.checkpoint.notes)


def test_a_weight_that_is_not_ternary_stays_dense_and_is_named(tmp_path):
    source = model(tmp_path, odd=True)
    run = Quantization(source, QuantizeOptions(method="ternary"))
    assert run.checkpoint.weights[DOWN] is source.weights[DOWN]
    assert any(f"{DOWN} is not ternary: 0.000763 %" in note for note in run.checkpoint.notes)
    with pytest.raises(UnsupportedSpec, match=r"down_proj\.weight is not ternary") as caught:
        Quantization(source, QuantizeOptions(method="ternary", strict=True))
    assert "--strict" in caught.value.hint


def test_what_a_recipe_keeps_is_not_looked_at(tmp_path):
    source = model(tmp_path, odd=True)
    rules = Recipe.from_json({"rule": [{"match": DOWN, "keep": True}, {"role": "v", "bits": 4, "method": "rtn"}]})
    run = Quantization(source, QuantizeOptions(method="ternary", recipe=rules, strict=True))
    assert run.checkpoint.weights[DOWN] is source.weights[DOWN]
    value = run.checkpoint.weights["model.layers.0.self_attn.v_proj.weight"]
    assert isinstance(value, QuantizedView)
    assert str(value.scheme) == "int4 row sym"


def test_a_plan_tells_what_will_be_taken_over(tmp_path):
    made = plan(model(tmp_path, odd=True), ["hf"], QuantizeOptions(method="ternary"))
    assert made.tensors["ternary row"] == 13
    assert any(f"{DOWN} is not ternary" in note for note in made.targets[0].notes)


def test_a_plan_of_every_container_says_which_is_best_in_each_engine(tmp_path):
    made = plan(model(tmp_path), list(every_target()), QuantizeOptions(method="ternary"))
    labels = {target.label: target for target in made.targets}
    assert set(labels) >= {"awq:gemm", "gptq:v1", "gptq:v1:4", "gguf:q4_0", "marlin", "hf:bf16"}
    for one in made.best:
        taken = [t for t in made.targets if any(v.engine == one.engine and v.refusal is None for v in t.kernels)]
        assert labels[one.smallest].size == min(target.size for target in taken)
    best = {one.engine: one for one in made.best}
    assert labels[best["vllm"].fastest].bits in (4, None)
    assert "llama-cpp" in best


def test_any_other_model_is_calibrated_on_three_levels(tmp_path):
    source = registry.open_checkpoint(write_tiny_checkpoint(tmp_path))
    run = Quantization(source, QuantizeOptions(method="ternary"))
    assert run.checkpoint.notes == source.notes
    view = run.checkpoint.weights[DOWN]
    assert isinstance(view, QuantizedView)
    assert view.scheme == TERNARY
    assert run.journal_size() > 0  # what is calibrated is kept


@pytest.mark.parametrize("bits", [3, 4])
def test_other_bits_are_refused(tmp_path, bits):
    scheme = AffineGroups(bits=bits, group_size=64)
    with pytest.raises(BadOption, match=f"ternary has codes of 2 bits, not {bits}"):
        Quantization(model(tmp_path), QuantizeOptions(method="ternary", scheme=scheme))
