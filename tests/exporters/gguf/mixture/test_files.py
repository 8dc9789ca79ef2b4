"""Whole files of llama.cpp's types from dense weights, in one step: tensors, bytes, refusals, and the engine itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.errors import BadOption, NonFiniteValues, QuantkitError, UnsupportedSpec
from quantkit.exporters.gguf.container.file import read_gguf
from quantkit.exporters.gguf.mixture.file_types import FILE_TYPES, MIXED
from quantkit.exporters.gguf.mixture.rules import Traits, tensor_types
from quantkit.models.checkpoint import Checkpoint
from quantkit.protocols import ExportOptions
from quantkit.tensors.block_options import BlockOptions
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView, TensorView
from tests.support import ggml
from tests.support.gguf_models import CONFIG, EXPORTER, WIDE, dense, quantized

REFERENCE = BlockOptions(algorithm="reference")
UNTIED = {**WIDE, "tie_word_embeddings": False, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
UNTIED |= {"num_attention_heads": 4, "num_key_value_heads": 1}
PROMPT = [1, 300, 400, 2041, 77]


def written(source: Checkpoint, path: Path, kind: str, **options: Any) -> Path:
    options = {"blocks": REFERENCE, **options}
    return publish(EXPORTER.prepare(source, ExportOptions(type=kind, **options)), path).path


def plain_values(source: Checkpoint, path: Path) -> dict[str, np.ndarray]:
    """The values of every tensor of `source`, float32, in the order of a GGUF file, by its names."""
    tensors = gguf.GGUFReader(written_plain(source, path)).tensors
    return {tensor.name: np.asarray(tensor.data) for tensor in tensors}


def written_plain(source: Checkpoint, path: Path) -> Path:
    return publish(EXPORTER.prepare(source, ExportOptions(type="f32")), path).path


@pytest.mark.engine("llama-cpp")
@pytest.mark.parametrize("kind", FILE_TYPES)
def test_every_file_has_the_types_of_the_rules_and_the_bytes_of_ggml(kind: str, tmp_path: Path) -> None:
    source = dense(UNTIED)
    plain = plain_values(source, tmp_path / "plain.gguf")
    file = read_gguf(written(source, tmp_path / "m.gguf", kind, threads=2))
    assert file.metadata["general.file_type"] == FILE_TYPES[kind].id
    shapes = {name: values.shape for name, values in plain.items() if values.ndim > 1}
    wanted = tensor_types(shapes, Traits(architecture="minicpm", layers=2, gqa=4), FILE_TYPES[kind])
    for name, values in plain.items():
        info = file.tensors[name]
        raw = file.rows(name, 0, info.shape[0])
        if values.ndim > 1:
            assert info.type is wanted[name], name
            assert np.array_equal(raw, ggml.quantized(info.type, values)), name
        else:
            assert np.array_equal(raw.view(np.float32)[:, 0], values), name


@pytest.mark.parametrize("algorithm", ["reference", "searched"])
def test_the_number_of_threads_changes_no_byte(algorithm: str, tmp_path: Path) -> None:
    blocks = BlockOptions(algorithm=algorithm)
    one, two = (written(dense(UNTIED), tmp_path / f"{n}.gguf", "q4_k_m", blocks=blocks, threads=n) for n in (1, 3))
    assert one.read_bytes() == two.read_bytes()


def test_k_quants_are_searched_without_being_told(tmp_path: Path) -> None:
    one = written(dense(UNTIED), tmp_path / "one.gguf", "q4_k_m", blocks=BlockOptions(algorithm="searched"))
    two = written(dense(UNTIED), tmp_path / "two.gguf", "q4_k_m", blocks=None)
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.engine("llama-cpp")
@pytest.mark.parametrize("kind", [*MIXED, "mxfp4 pure", "tq1_0"])
def test_llama_cpp_computes_what_the_reference_computes(
    kind: str, tmp_path: Path, tokenizer_files: dict[str, bytes]
) -> None:
    """On the same file: what is left is the rounding of activations, to int8 in runs of 32 or 256."""
    pure = BlockOptions(algorithm="reference", pure=True)
    options = {"blocks": pure} if kind == "mxfp4 pure" else {}
    source = dense(UNTIED, files=tokenizer_files)
    path = written(source, tmp_path / "m.gguf", kind if not options else "mxfp4_moe", **options)
    rows = []
    for name in ("llama-cpp", "reference"):
        with registry.runtime(name).open(path) as session:
            logits = session.next_logits(PROMPT).astype(np.float64)
            rows.append(logits - np.log(np.exp(logits).sum()))
    assert 1e-7 < np.abs(rows[0] - rows[1]).max() < 6e-2


def test_tensors_are_read_back_as_gguf_py_reads_them(tmp_path: Path) -> None:
    path = written(dense(UNTIED), tmp_path / "m.gguf", "q3_k_m")
    back = EXPORTER.read(path)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for name, key in (("blk.1.ffn_up", "layers.1.mlp.up_proj"), ("blk.0.attn_v", "layers.0.self_attn.v_proj")):
        view = back.weights[f"model.{key}.weight"]
        assert isinstance(view, QuantizedView)
        tensor = tensors[f"{name}.weight"]
        assert np.array_equal(view.read().dequantized(), gguf.quants.dequantize(tensor.data, tensor.tensor_type))


def test_the_manifest_says_what_was_asked_for_and_what_it_cost(tmp_path: Path) -> None:
    options = BlockOptions(tensor_types=("ffn_up=q6_k",), output_type="q8_0", embedding_type="f16")
    planned = EXPORTER.prepare(dense(UNTIED), ExportOptions(type="q4_k_s", blocks=options))
    types = {tensor.name: tensor.type for tensor in planned.tensors}
    assert (types["output.weight"], types["token_embd.weight"], types["blk.0.ffn_up.weight"]) == ("q8_0", "f16", "q6_k")
    done = publish(planned, tmp_path / "m.gguf")
    assert done.manifest["options"] == {
        "type": "q4_k_s",
        "arch": "native",
        "algorithm": "searched",
        "tensor_types": ["ffn_up=q6_k"],
        "output_type": "q8_0",
        "embedding_type": "f16",
    }
    tensors = done.manifest["weights"]["tensors"]
    six, four = (tensors[f"model.layers.0.mlp.{kind}_proj.weight"] for kind in ("up", "gate"))
    assert 0 < six["error"] < four["error"] / 8
    assert {"digest", "origin", "error"} <= six.keys()


def test_notes_tell_the_types_and_what_fell_back() -> None:
    notes = EXPORTER.prepare(dense(CONFIG), ExportOptions(type="q4_k_s")).notes
    assert "q4_k_s: 10 x q5_0, 2 x q5_1, 2 x q4_k, 1 x q8_0" in notes
    assert any("(token_embd.weight ...) become" in note and "no whole blocks of 256" in note for note in notes)
    assert any(
        "importance weights" in note
        for note in EXPORTER.prepare(dense(WIDE), options(type="q2_k_s", algorithm="reference")).notes
    )
    assert any("--pure" in note for note in EXPORTER.prepare(dense(WIDE), ExportOptions(type="mxfp4_moe")).notes)


def options(**choices: Any) -> ExportOptions:
    kind = choices.pop("type", "q4_k_m")
    return ExportOptions(type=kind, blocks=BlockOptions(**choices))


REFUSED: dict[str, tuple[ExportOptions, type[QuantkitError], str]] = {
    "unknown algorithm": (options(algorithm="best"), BadOption, "'best'"),
    "no type": (options(type=None, algorithm="reference"), BadOption, "no type quantizes none"),
    "a type of floats": (options(type="f16", pure=True), BadOption, "f16 quantizes none"),
    "types of tensors beside our own rules": (options(type="q4_0", tensor_types=("a=q8_0",)), BadOption, "q4_0"),
    "no pattern": (options(tensor_types=("q8_0",)), BadOption, "PATTERN=TYPE"),
    "an empty pattern": (options(tensor_types=("=q8_0",)), BadOption, "PATTERN=TYPE"),
    "not an expression": (options(tensor_types=("ffn_(=q8_0",)), BadOption, "regular expression"),
    "an unknown type of tensors": (options(tensor_types=("ffn=q9_9",)), BadOption, "'q9_9'"),
    "a pattern without match": (options(tensor_types=("mlp.up=q8_0",)), BadOption, "matches no tensor"),
    "an unknown type of the head": (options(output_type="x"), BadOption, "--output-type"),
    "two types of one matrix": (options(output_type="q8_0", embedding_type="f16"), BadOption, "both"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_means_nothing_is_refused(case: str) -> None:
    choice, cause, message = REFUSED[case]
    with pytest.raises(cause, match=message):
        EXPORTER.prepare(dense(WIDE), choice)


@pytest.mark.parametrize("choice", [options(), options(type="q4_0", algorithm="reference")], ids=["q4_k_m", "q4_0"])
def test_nothing_is_quantized_twice(choice: ExportOptions, tmp_path: Path) -> None:
    codes = quantized(AffineGroups(bits=4, group_size=128), WIDE)
    blocks = EXPORTER.read(written(dense(WIDE), tmp_path / "m.gguf", "q6_k"))
    for source in (codes, blocks):
        with pytest.raises(UnsupportedSpec, match="quantized already") as refusal:
            EXPORTER.prepare(source, choice)
        assert refusal.value.hint
    with pytest.raises(UnsupportedSpec, match="twice"):
        EXPORTER.prepare(blocks, ExportOptions(type="q8_0"))


@pytest.mark.parametrize("arch", ["native", "llama"])
def test_blocks_become_floats_where_they_are_asked_for_alone(arch: str, tmp_path: Path) -> None:
    """A file of llama.cpp with a Q6_K embedding, which is the head as well."""
    back = EXPORTER.read(written(dense(WIDE), tmp_path / "m.gguf", "q4_0"))
    planned = EXPORTER.prepare(back, ExportOptions(arch=arch))
    types = {tensor.name: tensor.type for tensor in planned.tensors}
    assert types["token_embd.weight"] == types.get("output.weight", "q6_k") == "q6_k"
    assert types["blk.0.ffn_up.weight"] == "q4_0"
    again = EXPORTER.prepare(back, ExportOptions(type="q4_0", arch=arch))
    assert {tensor.name: tensor.type for tensor in again.tensors} == types
    plain = EXPORTER.prepare(back, ExportOptions(type="f32", arch=arch))
    assert {tensor.type for tensor in plain.tensors} == {"f32"}


def test_types_that_were_named_must_fit() -> None:
    with pytest.raises(UnsupportedSpec, match=r"token_embd\.weight: its rows of 128 are not whole blocks of 256"):
        EXPORTER.prepare(dense(CONFIG), options(embedding_type="q6_k"))


def test_planning_reads_no_tensor_data_and_writing_refuses_what_is_not_finite(tmp_path: Path) -> None:
    source = dense(WIDE)
    name = "model.layers.0.mlp.up_proj.weight"
    view = source.weights[name]
    assert isinstance(view, TensorView)
    spoiled = np.array(view.read())
    spoiled[3, 5] = np.nan
    weights = {**source.weights, name: TensorView(name, view.dtype, view.shape, lambda a, b: spoiled[a:b])}
    with pytest.raises(NonFiniteValues, match=name):
        written(replace(source, weights=weights), tmp_path / "bad.gguf", "q4_k_m")
    assert not (tmp_path / "bad.gguf").exists()


@pytest.mark.parametrize("container", [name for name in registry.names("exporters") if name != "gguf"])
def test_other_containers_refuse_what_is_for_gguf(container: str) -> None:
    with pytest.raises(BadOption, match="does not quantize on the way"):
        registry.exporter(container).prepare(dense(CONFIG), ExportOptions(blocks=REFERENCE))
