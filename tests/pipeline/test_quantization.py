"""The quantization stream: what its views give, in which order, from how much memory, and what it reports."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from quantkit.calibration.autocast import has_bfloat16_products
from quantkit.calibration.samples import CalibrationFile, CalibrationOptions, Samples, make_samples
from quantkit.calibration.statistics import LayerStatistics
from quantkit.errors import BadOption, NonFiniteValues, QuantkitError, UnsupportedSpec, ValueOutOfRange
from quantkit.methods.gptq import Gptq
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.folding import folded
from quantkit.models.loading import load_block, load_model
from quantkit.models.spec import LINEAR_ROLES
from quantkit.models.torch_model import Block
from quantkit.pipeline.planned_model import planned
from quantkit.pipeline.recipe import Recipe
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.rounding import round_to_nearest
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView, TensorView
from tests.support.memory import memory_checkpoint, random_arrays, tiny_config
from tests.support.runs import one_layer, quantized

INT4 = AffineGroups(bits=4, group_size=32)
DOWN_0, DOWN_2 = "model.layers.0.mlp.down_proj.weight", "model.layers.2.mlp.down_proj.weight"


def samples(*lengths: int) -> Samples:
    rng = np.random.default_rng(5)
    return make_samples([rng.integers(0, 97, length) for length in lengths], source="text", digest="0" * 64)


def linear_views(checkpoint: Checkpoint) -> list[QuantizedView]:
    return [view for view in checkpoint.weights.values() if isinstance(view, QuantizedView)]


def tensors_of(checkpoint: Checkpoint) -> dict[str, QuantizedTensor]:
    """Every quantized weight, read in the order of the model."""
    return {view.name: view.read() for view in linear_views(checkpoint)}


def same(one: QuantizedTensor, other: QuantizedTensor) -> bool:
    pairs = ((one.codes, other.codes), (one.scale, other.scale), (one.zero, other.zero))
    return all(np.array_equal(a, b) for a, b in pairs)


def linear_names(checkpoint: Checkpoint) -> list[str]:
    return [slot.name for slot in checkpoint.spec.slots() if slot.role in LINEAR_ROLES]


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_linear_layers_become_quantized_and_nothing_else_changes(method: str):
    source = memory_checkpoint(tiny_config())
    run = quantized(source, INT4, method, calibration=samples(40, 40))
    assert list(run.checkpoint.weights) == list(source.weights)
    assert list(tensors_of(run.checkpoint)) == linear_names(source)
    for name, weight in run.checkpoint.weights.items():
        assert weight.shape == source.weights[name].shape
        if isinstance(weight, QuantizedView):
            assert weight.scheme == INT4
        else:
            assert weight is source.weights[name]


def test_nothing_is_computed_before_a_view_is_read():
    source = memory_checkpoint(tiny_config())

    def explode(start: int, stop: int) -> np.ndarray:
        raise AssertionError("read too early")

    unread = {name: replace(view, fetch=explode) for name, view in source.weights.items()}
    quantized(
        replace(source, weights=unread),
        INT4,
        "gptq",
        calibration=CalibrationOptions(files=(CalibrationFile(path=Path("absent.txt")),)),
    )


def test_a_bad_calibration_file_is_found_before_any_output_is_begun():
    source = memory_checkpoint(tiny_config())
    missing = CalibrationOptions(files=(CalibrationFile(path=Path("absent.txt")),), length=32)
    with pytest.raises(QuantkitError, match=r"absent\.txt|tokenizer\.model"):
        quantized(source, INT4, "gptq", calibration=missing).calibrate()
    quantized(source, INT4, "rtn", calibration=missing).calibrate()


def test_round_to_nearest_can_be_read_in_any_order_and_twice():
    source = memory_checkpoint(tiny_config())
    run = quantized(source, INT4, "rtn")
    for name in [DOWN_2, DOWN_0, DOWN_0]:
        assert same(run.checkpoint.weights[name].read(), round_to_nearest(source.weights[name].read(), INT4))


def test_a_calibrated_block_can_be_read_again_until_the_next_one_begins():
    run = quantized(memory_checkpoint(tiny_config()), INT4, "gptq", calibration=samples(20))
    views = run.checkpoint.weights
    first = views[DOWN_0].read()
    assert same(views[DOWN_0].read(), first)
    views[DOWN_2].read()  # the block between is computed on the way
    assert len(run.report()["tensors"]) == 21
    with pytest.raises(RuntimeError, match="blocks are computed once, in order"):
        views[DOWN_0].read()


def test_skipping_over_blocks_gives_what_reading_all_gives():
    source = memory_checkpoint(tiny_config())
    whole = tensors_of(quantized(source, INT4, "gptq", calibration=samples(30, 20)).checkpoint)
    alone = quantized(source, INT4, "gptq", calibration=samples(30, 20)).checkpoint.weights[DOWN_2].read()
    assert same(whole[DOWN_2], alone)


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_two_threads_give_the_same_numbers_as_one(method: str):
    config = tiny_config(hidden_size=128, intermediate_size=1056, num_hidden_layers=2)
    runs = [
        quantized(memory_checkpoint(config), INT4, method, calibration=samples(33, 64, 5, 40, 41), threads=threads)
        for threads in (1, 2)
    ]
    one, two = (tensors_of(run.checkpoint) for run in runs)
    assert all(same(one[name], two[name]) for name in one)
    assert json.dumps(runs[0].report()) == json.dumps(runs[1].report())


def codes_by_whole_passes(source: Checkpoint, rows: Samples, spec: AffineGroups) -> list[np.ndarray]:
    """Codes by the slow way: for every stage a pass of the whole model, with hooks that catch the layers' inputs."""
    model, method, codes = load_model(source), Gptq(), []
    for block in model.model.layers:
        for stage in (("q", "k", "v"), ("o",), ("gate", "up"), ("down",)):
            owner = block.self_attn if stage[0] in "qo" else block.mlp
            layers = [owner.get_submodule(f"{name}_proj") for name in stage]
            caught: list[torch.Tensor] = []
            hook = layers[0].register_forward_pre_hook(lambda _, args: caught.append(args[0][0].double()))  # noqa: B023
            for row in rows.sequences:
                model(torch.from_numpy(row)[None])
            hook.remove()
            x = torch.cat(caught)
            statistics = LayerStatistics(x.T @ x, len(x))
            for layer in layers:
                tensor, _ = one_layer(method, layer.weight.numpy(), spec, statistics)
                codes.append(tensor.codes)
                layer.weight.copy_(torch.from_numpy(tensor.dequantized()))
    return codes


def test_every_layer_is_calibrated_on_the_outputs_of_all_quantized_ones_before_it():
    source, rows = memory_checkpoint(tiny_config(num_hidden_layers=2)), samples(250, 230)
    spec = replace(INT4, bits=3)
    plain = {"skip_positions": 0, "propagate": False, "fisher": False, "bfloat16": False}
    run = quantized(source, spec, Gptq(), calibration=rows, **plain)
    ours = [tensor.codes for tensor in tensors_of(run.checkpoint).values()]
    slow = codes_by_whole_passes(source, rows, spec)
    for one, other in zip(ours, slow, strict=True):
        assert (one != other).mean() < 0.02  # other products, other last bits, now and then another side of a tie


@pytest.mark.parametrize("fisher", [False, True])
def test_one_block_is_in_memory_at_a_time(monkeypatch: pytest.MonkeyPatch, fisher: bool):
    source = memory_checkpoint(tiny_config())
    blocks: list[weakref.ref[Block]] = []
    arrays: list[weakref.ref[np.ndarray]] = []

    def load_watched(checkpoint: Checkpoint, layer: int) -> Block:
        gc.collect()
        assert not any(ref() is not None for ref in blocks), "the block before is still there"
        block = load_block(checkpoint, layer)
        assert not any(ref() is not None for ref in arrays), "a copy of the weights is still there"
        blocks.append(weakref.ref(block))
        return block

    def watched(view: TensorView) -> TensorView:
        def fetch(start: int, stop: int) -> np.ndarray:
            array = view.fetch(start, stop).view(_Watched)
            arrays.append(weakref.ref(array))
            return array

        return replace(view, fetch=fetch)

    monkeypatch.setattr("quantkit.pipeline.blocks.block_stream.load_block", load_watched)
    monkeypatch.setattr("quantkit.calibration.fisher.load_block", load_watched)
    source = replace(source, weights={name: watched(view) for name, view in source.weights.items()})
    run = quantized(source, INT4, "gptq", calibration=samples(20), fisher=fisher)
    codes = [weakref.ref(view.read().codes) for view in linear_views(run.checkpoint)]
    assert len(blocks) == (1 + 2 * fisher) * 3  # there, and there and back again
    measured = 3 * 7  # every layer once more, for its plain error
    assert len(arrays) == 1 + 3 * 9 + measured + fisher * (1 + 2 * 3 * 9 + 2)
    assert sum(ref() is not None for ref in codes) <= 7


class _Watched(np.ndarray):
    """An array that can be referred to weakly."""


@pytest.mark.parametrize("wish", [None, False, True])
def test_the_report_names_the_precision_of_calibration(wish: bool | None):
    run = quantized(memory_checkpoint(tiny_config()), INT4, "gptq", calibration=samples(12), bfloat16=wish)
    assert run.report()["bfloat16"] is (has_bfloat16_products() if wish is None else wish)
    rounded = quantized(memory_checkpoint(tiny_config()), INT4, "rtn", calibration=samples(12), bfloat16=wish)
    assert rounded.report()["bfloat16"] is False


def test_the_report_says_how_well_it_went():
    run = quantized(memory_checkpoint(tiny_config()), INT4, "gptq", calibration=samples(240, 230))
    tensors_of(run.checkpoint)
    report = json.loads(json.dumps(run.report()))
    assert report["method"] == "gptq"
    assert report["scheme"] == INT4.to_json()
    assert report["calibration"]["tokens"] == 470
    assert list(report["tensors"]) == linear_names(run.checkpoint)
    for entry in report["tensors"].values():
        assert 1e-5 < entry["error"] < 0.02
        assert entry["fallback"] is None


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_hidden_states_that_are_not_finite_give_a_finished_model_that_says_so(method: str):
    arrays = random_arrays(memory_checkpoint(tiny_config()).spec)
    arrays["model.layers.1.input_layernorm.weight"][:] = 3e38  # q times k overflows: NaN from block 1 on
    source = memory_checkpoint(tiny_config(), arrays)
    run = quantized(source, INT4, method, calibration=samples(12))
    found = tensors_of(run.checkpoint)
    reports = run.report()["tensors"]
    assert reports[DOWN_0]["fallback"] is None
    assert reports[DOWN_2]["fallback"] == "the calibration inputs hold NaN or infinity"
    assert same(found[DOWN_2], round_to_nearest(arrays[DOWN_2], INT4))


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_one_calibration_token_gives_a_finished_model(method: str):
    run = quantized(memory_checkpoint(tiny_config()), INT4, method, calibration=samples(1))
    assert len(tensors_of(run.checkpoint)) == 21


def test_a_folded_model_is_quantized_exactly_as_its_folded_weights():
    source = folded(memory_checkpoint(tiny_config()))
    run = quantized(source, INT4, "rtn")
    assert run.checkpoint.spec.architecture == "llama"
    assert same(run.checkpoint.weights[DOWN_0].read(), round_to_nearest(source.weights[DOWN_0].read(), INT4))


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq"])
@pytest.mark.parametrize(("value", "error"), [(np.nan, NonFiniteValues), (1e8, ValueOutOfRange)])
def test_a_bad_weight_is_refused_by_name(method: str, value: float, error: type[Exception]):
    arrays = random_arrays(memory_checkpoint(tiny_config()).spec)
    arrays[DOWN_0][3, 4] = value
    run = quantized(memory_checkpoint(tiny_config(), arrays), INT4, method, calibration=samples(9))
    with pytest.raises(error, match=f"^{DOWN_0}: ") as failure:
        tensors_of(run.checkpoint)
    assert "\n" not in str(failure.value)


def test_what_cannot_be_quantized_is_refused_before_any_work():
    source = memory_checkpoint(tiny_config())
    with pytest.raises(UnsupportedSpec, match=r"model\.layers\.0\.self_attn\.q_proj\.weight: 64 columns"):
        quantized(source, AffineGroups(bits=4, group_size=128), "rtn")
    with pytest.raises(BadOption, match="unknown method 'magic'"):
        quantized(source, INT4, "magic")
    arrays = dict(random_arrays(source.spec))
    arrays[DOWN_0] = round_to_nearest(arrays[DOWN_0], INT4)
    with pytest.raises(BadOption, match=f"{DOWN_0} is quantized already"):
        quantized(memory_checkpoint(tiny_config(), arrays), INT4, "rtn")


def test_a_planned_model_has_the_views_but_no_values():
    source = memory_checkpoint(tiny_config())
    plan = planned(source, Recipe().assign(source.spec, INT4, "rtn"))
    run = quantized(source, INT4, "rtn")
    for name, weight in run.checkpoint.weights.items():
        assert type(plan.weights[name]) is type(weight)
        assert plan.weights[name].shape == weight.shape
    with pytest.raises(UnsupportedSpec, match=rf"{DOWN_0}: whether the container holds it is known from its numbers"):
        plan.weights[DOWN_0].read()


def test_round_to_nearest_needs_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from tests.support.memory import memory_checkpoint, tiny_config\n"
        "from quantkit import AffineGroups, Compute, QuantizeOptions\n"
        "from quantkit.pipeline.quantization import Quantization\n"
        "source, scheme = memory_checkpoint(tiny_config()), AffineGroups(bits=4, group_size=32)\n"
        "run = Quantization(source, QuantizeOptions(method='rtn', scheme=scheme), compute=Compute(threads=2))\n"
        "print(sum(hasattr(view, 'scheme') and view.read() is not None for view in run.checkpoint.weights.values()))\n"
        "try:\n"
        "    Quantization(source, QuantizeOptions(method='gptq', scheme=scheme))\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error.hint)\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["21", "MissingDependency pip install 'quantkit[torch,text]'"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_here_is_refused_before_anything_is_read():
    with pytest.raises(BadOption, match="sees no CUDA device"):
        quantized(memory_checkpoint(tiny_config()), AffineGroups(bits=4, group_size=32), "gptq", device="cuda")


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="torch sees no CUDA device here; tests.support.elsewhere stands in"
)
@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_a_cuda_device_gives_the_codes_of_the_cpu_until_a_scale_rounds_otherwise(method: str):
    found = []
    for device in ("cpu", "cuda"):
        run = quantized(
            memory_checkpoint(tiny_config()),
            INT4,
            method,
            calibration=samples(*[40] * 10),
            device=device,
            bfloat16=False,
        )
        codes = [tensor.codes for tensor in tensors_of(run.checkpoint).values()]
        errors = [report["error"] for report in run.report()["tensors"].values()]
        found.append((codes, np.mean(errors)))
    (codes, error), (others, other_error) = found
    if method == "awq":  # no code depends on another
        assert np.mean([np.mean(one != other) for one, other in zip(codes, others, strict=True)]) < 0.01
    assert other_error == pytest.approx(error, rel=0.1)
