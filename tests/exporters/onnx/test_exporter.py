"""The folder: what lies in it, what options do to it, what is refused and what is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.errors import BadOption, UnsupportedSpec
from quantkit.exporters.onnx.places import MAPPED, PAGE, places
from quantkit.exporters.onnx.settings import OPS, Settings
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.recognition import parse_config
from quantkit.protocols import ExportOptions
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.schemes.offset_groups import OffsetGroups
from quantkit.tensors.views import QuantizedView, TensorView
from tests.support.laws import check_exporter
from tests.support.memory import memory_checkpoint, tiny_config
from tests.support.quantized_models import linears, quantized_model

onnx = pytest.importorskip("onnx")

EXPORTER = registry.exporter("onnx")
CONFIG = tiny_config(bos_token_id=1, eos_token_id=[2, 7])
INT4 = AffineGroups(bits=4, group_size=32)
ASYM = AffineGroups(bits=4, group_size=32, symmetric=False)


def everything(spec: AffineGroups) -> Any:
    return lambda slot: spec if len(slot.shape) == 2 else None


MODELS = {
    "dense": lambda: memory_checkpoint(CONFIG),
    "int4": lambda: quantized_model(CONFIG, linears(INT4)),
    "int4 everywhere": lambda: quantized_model(CONFIG, everything(INT4)),
    "int4 asym everywhere": lambda: quantized_model(CONFIG, everything(ASYM)),
    "int8 rows, untied": lambda: quantized_model(
        {**CONFIG, "tie_word_embeddings": False}, everything(AffineGroups(bits=8, group_size=-1))
    ),
    "int2 everywhere": lambda: quantized_model(CONFIG, everything(AffineGroups(bits=2, group_size=32))),
    "ternary": lambda: quantized_model(CONFIG, linears(AffineGroups(bits=2, group_size=-1, ternary=True))),
    "bfloat16 scales": lambda: quantized_model(
        CONFIG, linears(AffineGroups(bits=4, group_size=32, scale_dtype="bfloat16"))
    ),
}


@pytest.mark.parametrize("name", [name for name in MODELS if name != "bfloat16 scales"])
@pytest.mark.parametrize("ops", OPS)
def test_the_laws_hold_for_every_set_of_operators(ops: str, name: str, tmp_path: Path) -> None:
    assert check_exporter(EXPORTER, MODELS[name](), ExportOptions(ops=ops), tmp_path)


@pytest.mark.parametrize("ops", OPS)
def test_codes_scales_and_zero_points_come_back_in_their_own_types(ops: str, tmp_path: Path) -> None:
    """A graph of float32 has float32 scales; what is read has those of the run."""
    model = quantized_model(CONFIG, everything(AffineGroups(bits=4, group_size=32, symmetric=False)))
    publish(EXPORTER.prepare(model, ExportOptions(ops=ops)), tmp_path / "m")
    back = EXPORTER.read(tmp_path / "m")
    for name, weight in model.weights.items():
        if isinstance(weight, QuantizedView):
            given, view = weight.read(), back.weights[name]
            assert isinstance(view, QuantizedView)
            found = view.read()
            assert found.scheme == given.scheme
            assert found.codes.tobytes() == given.codes.tobytes()
            assert found.scale.tobytes() == given.scale.tobytes()
            assert found.zero.tobytes() == given.zero.tobytes()
        else:
            view = back.weights[name]
            assert isinstance(view, TensorView)
            assert np.array_equal(view.read(), weight.read().astype(np.float32))


def model_of(planned: Any) -> Any:
    """The planned graph."""
    (unit,) = next(file for file in planned.files if file.name == "model.onnx").units
    return onnx.ModelProto.FromString(b"".join(map(bytes, unit.produce())))


def genai_of(checkpoint: Checkpoint, **options: Any) -> dict[str, Any]:
    planned = EXPORTER.prepare(checkpoint, ExportOptions(**options))
    (unit,) = next(file for file in planned.files if file.name == "genai_config.json").units
    config: dict[str, Any] = json.loads(b"".join(map(bytes, unit.produce())))
    return config


def test_genai_is_told_the_model_the_sessions_and_the_sampling() -> None:
    generation = {"generation_config.json": b'{"do_sample": true, "temperature": 0.7, "top_k": 40, "top_p": null}'}
    checkpoint = quantized_model(CONFIG, linears(INT4), files=generation)
    config = genai_of(checkpoint)
    assert config["model"].items() >= {
        "type": "decoder", "bos_token_id": 1, "eos_token_id": [2, 7], "pad_token_id": 2, "vocab_size": 97,
        "context_length": 64,
    }.items()  # fmt: skip
    assert config["model"]["decoder"]["session_options"] == {"log_id": "onnxruntime-genai", "provider_options": []}
    assert config["search"] == {
        "max_length": 64, "past_present_share_buffer": True, "do_sample": True, "temperature": 0.7, "top_k": 40,
    }  # fmt: skip
    standard = genai_of(checkpoint, ops="standard", arch="llama", context=32)
    assert standard["model"]["type"] == "llama"
    options = standard["model"]["decoder"]["session_options"]
    assert options["session.qdq_matmulnbits_accuracy_level"] == "0"
    assert standard["search"]["past_present_share_buffer"] is False
    assert (standard["model"]["context_length"], standard["search"]["max_length"]) == (32, 32)


def test_a_folder_from_which_genai_reads_no_text_says_so() -> None:
    planned = EXPORTER.prepare(quantized_model(CONFIG, linears(INT4), files={"tokenizer.model": b"x"}), ExportOptions())
    assert "there is no tokenizer.json, without which onnxruntime-genai reads ids alone" in planned.notes
    files = {"tokenizer.model": b"x", "tokenizer.json": b"{}"}
    assert EXPORTER.prepare(quantized_model(CONFIG, linears(INT4), files=files), ExportOptions()).notes == ()


def test_a_tied_head_reads_the_bytes_of_the_embedding() -> None:
    graph = model_of(EXPORTER.prepare(MODELS["int4 everywhere"](), ExportOptions())).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    one, other = tensors["model.embed_tokens.weight.rows"], tensors["model.embed_tokens.weight.codes"]
    assert one.external_data == other.external_data
    assert (list(one.dims), list(other.dims)) == ([97, 32], [97, 2, 16])


def test_tensors_begin_where_they_can_be_mapped() -> None:
    """5001 rows of scales or zero points do not end where another tensor may begin."""
    spec = parse_config(tiny_config(vocab_size=5001, tie_word_embeddings=False))
    plan = places(spec, {"model.embed_tokens.weight": ASYM}, Settings("f32", "contrib", 64))
    extents = [extent for place in plan.weights.values() for extent in place.extents.values()]
    assert [extent.offset % 64 for extent in extents] == [0] * len(extents)
    ends = [0, *(extent.offset + extent.size for extent in extents)]
    gaps = [extent.offset - end for extent, end in zip(extents, ends, strict=False)]
    assert all(gap >= 0 for gap in gaps)
    assert len({gap for gap in gaps if gap}) > 1
    head = plan.weights["lm_head.weight"].extents[""]
    assert head.size >= MAPPED
    assert head.offset % PAGE == 0
    assert all(gap < 64 for gap, extent in zip(gaps, extents, strict=True) if extent is not head)


def test_the_scalars_of_minicpm_are_constants_of_the_graph() -> None:
    native = model_of(EXPORTER.prepare(MODELS["int4"](), ExportOptions())).graph
    folded = model_of(EXPORTER.prepare(MODELS["int4"](), ExportOptions(arch="llama"))).graph
    values = {float(onnx.numpy_helper.to_array(t)) for t in native.initializer if not t.external_data and not t.dims}
    assert {12.0, float(np.float32(1.4 / 3**0.5)), 4.0} <= values
    values = {float(onnx.numpy_helper.to_array(t)) for t in folded.initializer if not t.external_data and not t.dims}
    assert not {12.0, 4.0} & values
    count = [sum(node.op_type == "Mul" for node in graph.node) for graph in (native, folded)]
    assert count[0] == count[1] + 2 * 3  # two residual scales a block; that of the embedding is 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"type": "bf16"}, "no type 'bf16'"),
        ({"ops": "mine"}, "no operators 'mine'"),
        ({"bits": 3}, "no codes of 3 bits"),
        ({"context": 0}, "context of 0 tokens"),
        ({"context": 65}, "context of 65 tokens"),
        ({"arch": "gpt"}, "unknown architecture"),
    ],
)
def test_an_option_that_means_nothing_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(BadOption, match=words):
        EXPORTER.prepare(MODELS["int4"](), ExportOptions(**options))


@pytest.mark.parametrize(
    ("scheme", "words"),
    [
        (AffineGroups(bits=3, group_size=32, symmetric=False), "codes of 2, 4 and 8 bits"),
        (AffineGroups(bits=4, group_size=8), "blocks of a power of two from 16"),
        (OffsetGroups(bits=4, group_size=32), "integer zero point"),
    ],
)
def test_codes_that_the_graph_does_not_hold_are_refused_by_name(scheme: Any, words: str) -> None:
    model = quantized_model(CONFIG, linears(INT4))
    name = "model.layers.0.self_attn.q_proj.weight"
    view = QuantizedView(name, model.weights[name].shape, scheme, lambda: pytest.fail("read"))  # type: ignore[arg-type]
    changed = Checkpoint(
        path=model.path, format=model.format, config=model.config, spec=model.spec,
        weights={**model.weights, name: view}, files={}, inputs=(),
    )  # fmt: skip
    with pytest.raises(UnsupportedSpec, match=words) as refusal:
        EXPORTER.prepare(changed, ExportOptions())
    assert name in str(refusal.value)
    assert refusal.value.hint


def test_a_scale_that_float16_does_not_hold_is_refused_while_writing(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedSpec, match="f16 does not hold the scale") as refusal:
        publish(EXPORTER.prepare(MODELS["bfloat16 scales"](), ExportOptions(type="f16")), tmp_path / "m")
    assert refusal.value.hint == "choose the type f32"
    assert list(tmp_path.iterdir()) == []


def test_heads_that_onnxruntime_does_not_take_are_left_to_standard_operators() -> None:
    model = memory_checkpoint(tiny_config(head_dim=24))
    with pytest.raises(UnsupportedSpec, match="heads of 24 channels") as refusal:
        EXPORTER.prepare(model, ExportOptions())
    assert "--ops standard" in str(refusal.value.hint)
    assert EXPORTER.prepare(model, ExportOptions(ops="standard")).options["ops"] == "standard"


def test_a_graph_of_dynamic_ntk_ends_where_its_angles_change() -> None:
    model = memory_checkpoint({**CONFIG, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}})
    planned = EXPORTER.prepare(model, ExportOptions())
    assert planned.options["context"] == 64
    assert "the graph ends at 64 tokens, and with it what dynamic NTK does to longer texts" in planned.notes
    shorter = EXPORTER.prepare(model, ExportOptions(context=32))
    assert "the graph takes up to 32 tokens, of 64 that the model can" in shorter.notes


@pytest.mark.parametrize("name", [name for name in registry.names("exporters") if name != "onnx"])
@pytest.mark.parametrize(("options", "words"), [({"ops": "contrib"}, "operators"), ({"context": 32}, "context")])
def test_containers_without_a_graph_refuse_its_options(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(BadOption, match=words):
        registry.exporter(name).prepare(MODELS["int4"](), ExportOptions(**options))


def test_a_folder_without_a_graph_is_not_recognized(tmp_path: Path, good: Path) -> None:
    assert EXPORTER.recognizes(good)
    assert registry.recognize(good).name == "onnx"
    assert not EXPORTER.recognizes(tmp_path)
    assert not EXPORTER.recognizes(tmp_path / "nothing")
