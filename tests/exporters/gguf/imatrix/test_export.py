"""`export gguf --imatrix`: types and bytes of llama-quantize, what is recorded, and what is refused."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import quantkit
from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.errors import BadOption, InconsistentCheckpoint, OutputExists, QuantkitError, UnsupportedSpec
from quantkit.exporters.gguf.container.file import GGUFFile, read_gguf
from quantkit.exporters.gguf.imatrix.reading import read_importance
from quantkit.exporters.gguf.mixture.file_types import FILE_TYPES
from quantkit.exporters.gguf.mixture.rules import Traits, tensor_types
from quantkit.exporters.gguf.reference.quantizer import WEIGHED
from quantkit.protocols import ExportOptions
from quantkit.tensors.block_options import BlockOptions
from tests.support import ggml
from tests.support.gguf_models import CONFIG, EXPORTER, WIDE, dense, write
from tests.support.imatrix_files import gguf_matrix, legacy_matrix, random_sums

DEEP = {**WIDE, "tie_word_embeddings": False, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 8}
DEEP |= {"vocab_size": 64, "eos_token_id": 2}
DEEP |= {"num_attention_heads": 4, "num_key_value_heads": 1}
"""Eight layers: enough for the rules that tell the first eighth from the others."""
READING = [kind for kind in FILE_TYPES if kind not in ("q8_0", "tq1_0", "tq2_0", "q2_0", "mxfp4_moe")]
"""File types of which some tensor reads weights, of those that are told of: embedding and head are not."""
QUANTIZE = shutil.which("llama-quantize")


def matrices(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    planned = EXPORTER.prepare(dense(config), ExportOptions(type="f32"))
    return {tensor.name: tensor.shape for tensor in planned.tensors if len(tensor.shape) > 1}


def sums_of(config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Of the blocks alone, as llama-imatrix has it."""
    return random_sums({name: shape for name, shape in matrices(config).items() if name.startswith("blk.")})


def saved(data: bytes, path: Path) -> Path:
    path.write_bytes(data)
    return path


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(gguf_matrix(sums_of(DEEP), 27), tmp_path_factory.mktemp("imatrix") / "deep.gguf")


def asked(kind: str | None, path: Path, **choices: Any) -> ExportOptions:
    return ExportOptions(type=kind, blocks=BlockOptions(imatrix=path, **{"algorithm": "reference", **choices}))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> GGUFFile:
    """The values of all tensors, as they lie in the file."""
    return read_gguf(write(dense(DEEP), tmp_path_factory.mktemp("plain") / "plain.gguf", "f32"))


@pytest.mark.engine("llama-cpp")
@pytest.mark.parametrize("kind", READING)
def test_types_are_the_rules_and_bytes_ggmls(kind: str, deep: Path, plain: GGUFFile) -> None:
    """The types of all tensors, and the bytes of those of the first and the last block, and outside."""
    planned, sums = EXPORTER.prepare(dense(DEEP), asked(kind, deep)), sums_of(DEEP)
    traits = Traits(architecture="minicpm", layers=8, gqa=4)
    wanted = tensor_types(matrices(DEEP), traits, FILE_TYPES[kind], weighted=True)
    types = {tensor.name: tensor.type for tensor in planned.tensors}
    assert {name: types[name] for name in wanted} == {name: block.name.lower() for name, block in wanted.items()}
    for unit in planned.files[0].units:
        if unit.name not in wanted or re.match(r"blk\.[1-6]\.", unit.name):
            continue
        block, weights = wanted[unit.name], sums[unit.name] / np.float32(27) if unit.name in sums else None
        values = plain.rows(unit.name, 0, plain.tensors[unit.name].shape[0]).view(np.float32)
        theirs = ggml.quantized(block, values, weights)
        assert b"".join(map(bytes, unit.produce()))[: theirs.nbytes] == theirs.tobytes(), unit.name
        other = np.array_equal(theirs, ggml.quantized(block, values))
        assert other == (weights is None or block not in WEIGHED), f"{unit.name}: do weights make a difference?"


def test_some_types_differ_where_weights_are_known(deep: Path) -> None:
    for kind, block in (("q4_0", "q4_1"), ("q5_0", "q5_1"), ("iq4_nl", "iq4_nl")):
        with_weights = EXPORTER.prepare(dense(DEEP), asked(kind, deep))
        without = EXPORTER.prepare(dense(DEEP), ExportOptions(type=kind, blocks=BlockOptions(algorithm="reference")))
        for planned, wanted in ((with_weights, block), (without, "q5_k" if kind == "iq4_nl" else kind)):
            types = {tensor.name: tensor.type for tensor in planned.tensors}
            assert (types["blk.0.ffn_down.weight"], types["blk.1.ffn_down.weight"]) == (wanted, kind)


def test_formats_and_threads_change_no_byte(deep: Path, tmp_path: Path) -> None:
    """A legacy file that says the same: its values are means times calls."""
    old = saved(legacy_matrix(sums_of(DEEP), calls=27), tmp_path / "deep.gguf")
    data = set()
    for path, threads in ((deep, 1), (old, 3)):
        planned = EXPORTER.prepare(dense(DEEP), replace(asked("q3_k_m", path), threads=threads))
        data.add(publish(planned, tmp_path / f"{threads}.gguf").path.read_bytes())
    assert len(data) == 1


def test_file_and_manifest_say_by_what(deep: Path, tmp_path: Path) -> None:
    done = publish(EXPORTER.prepare(dense(DEEP), asked("q4_k_m", deep)), tmp_path / "m.gguf")
    digest = hashlib.sha256(deep.read_bytes()).hexdigest()
    assert done.manifest["options"]["imatrix"] == {"file": "deep.gguf", "sha256": digest}
    assert any("no weights for token_embd.weight and 1 more" in note for note in done.manifest["notes"])
    metadata = read_gguf(done.path).metadata
    assert {name: value for name, value in metadata.items() if "imatrix" in name} == {
        "quantize.imatrix.file": "deep.gguf",
        "quantize.imatrix.dataset": "text.txt",
        "quantize.imatrix.entries_count": 56,
        "quantize.imatrix.chunks_count": 2,
    }
    assert EXPORTER.read(done.path).spec == dense(DEEP).spec


def test_weights_of_the_head_are_read_where_there_are_any(tmp_path: Path) -> None:
    sums = random_sums(matrices(DEEP))
    path = saved(gguf_matrix(sums), tmp_path / "all.gguf")
    file = read_gguf(
        publish(EXPORTER.prepare(dense(DEEP), asked("q8_0", path, output_type="q6_k")), tmp_path / "m").path
    )
    without = EXPORTER.prepare(
        dense(DEEP), ExportOptions(type="q8_0", blocks=BlockOptions(algorithm="reference", output_type="q6_k"))
    )
    other = read_gguf(publish(without, tmp_path / "n").path)
    differing = [
        name
        for name in file.tensors
        if not np.array_equal(*(f.rows(name, 0, f.tensors[name].shape[0]) for f in (file, other)))
    ]
    assert differing == ["output.weight"]


REFUSED: dict[str, tuple[str | None, dict[str, Any], type[QuantkitError], str]] = {
    "no type": (None, {"algorithm": None}, BadOption, "no type quantizes none"),
    "floats": ("f16", {"algorithm": None}, BadOption, "f16 quantizes none"),
    "our own rules": ("q4_0", {"algorithm": None}, BadOption, "llama.cpp's way"),
    "a run that measures": ("q4_k_m", {"algorithm": "calibrated"}, BadOption, "measures inputs itself"),
    "a type without weights": ("q8_0", {}, BadOption, "no tensor of this q8_0 file"),
    "ternary types": ("tq2_0", {}, BadOption, "no tensor of this tq2_0 file"),
    "mxfp4": ("mxfp4_moe", {"pure": True}, BadOption, "no tensor of this mxfp4_moe file"),
    "all of them given another type": ("q4_k_m", {"tensor_types": ("blk=q8_0",)}, BadOption, "no tensor"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_where_nothing_reads_it(case: str, deep: Path) -> None:
    kind, choices, cause, message = REFUSED[case]
    with pytest.raises(cause, match=message) as refusal:
        EXPORTER.prepare(dense(DEEP), asked(kind, deep, **choices))
    assert refusal.value.hint


@pytest.mark.parametrize("container", [name for name in registry.names("exporters") if name != "gguf"])
def test_other_containers_refuse_it(container: str, deep: Path) -> None:
    with pytest.raises(BadOption, match="does not quantize on the way"):
        registry.exporter(container).prepare(dense(CONFIG), ExportOptions(blocks=BlockOptions(imatrix=deep)))


def test_one_of_another_model_is_refused(deep: Path, tmp_path: Path) -> None:
    with pytest.raises(InconsistentCheckpoint, match=r"256 weights for .*whose rows have 512"):
        EXPORTER.prepare(dense(WIDE), asked("q4_k_m", deep))
    sums = sums_of(DEEP)
    del sums["blk.3.ffn_up.weight"]
    lacking = saved(gguf_matrix(sums), tmp_path / "lacking.gguf")
    with pytest.raises(UnsupportedSpec, match=r"blk\.3\.ffn_up\.weight.*q2_k_s needs them"):
        EXPORTER.prepare(dense(DEEP), asked("q2_k_s", lacking))


def test_the_output_cannot_be_what_it_is_quantized_by(untuned_model: Path, tmp_path: Path) -> None:
    planned = EXPORTER.prepare(registry.open_checkpoint(untuned_model), ExportOptions(type="f32"))
    shapes = {tensor.name: tensor.shape for tensor in planned.tensors if len(tensor.shape) > 1}
    path = saved(gguf_matrix(random_sums(shapes)), tmp_path / "i.gguf")
    with pytest.raises(OutputExists, match="is, or holds, the input"):
        quantkit.export("gguf", untuned_model, path, asked("q4_k_m", path), overwrite=True)
    assert path.read_bytes() == gguf_matrix(random_sums(shapes))


@pytest.mark.skipif(QUANTIZE is None, reason="llama-quantize is not on the path; benchmarks/gguf_files.py builds it")
@pytest.mark.parametrize("kind", ["q2_k_s", "q3_k_m", "q4_0", "q4_k_m", "q5_0", "iq4_nl", "iq4_xs"])
@pytest.mark.parametrize("legacy", [False, True], ids=["gguf", "dat"])
def test_llama_quantize_writes_the_same(kind: str, legacy: bool, tmp_path: Path) -> None:
    source = dense(DEEP)
    sums = sums_of(DEEP)
    path = saved(legacy_matrix(sums, calls=5) if legacy else gguf_matrix(sums, 27), tmp_path / "i")
    plain, theirs = write(source, tmp_path / "plain.gguf", "f32"), tmp_path / "theirs.gguf"
    subprocess.run([str(QUANTIZE), "--imatrix", path, plain, theirs, kind, "1"], check=True, capture_output=True)
    ours = read_gguf(publish(EXPORTER.prepare(source, asked(kind, path)), tmp_path / "ours.gguf").path)
    other = read_gguf(theirs)
    assert ours.tensors.keys() == other.tensors.keys()
    for name, info in ours.tensors.items():
        assert info.type is other.tensors[name].type, name
        assert np.array_equal(*(file.rows(name, 0, info.shape[0]) for file in (ours, other))), name
    told = [{key: value for key, value in file.metadata.items() if "imatrix" in key} for file in (ours, other)]
    assert told[0] == {**told[1], "quantize.imatrix.file": path.name}


def test_a_search_is_led_by_an_importance_matrix_too(deep: Path, tmp_path: Path) -> None:
    """Columns that count more are nearer to the original than where nothing is known of them."""
    columns = read_importance(deep).weights
    errors = {}
    for name, path in (("led", deep), ("alone", None)):
        out = tmp_path / f"{name}.gguf"
        blocks = BlockOptions(algorithm="searched", imatrix=path)
        quantkit.export("gguf", dense(DEEP), out, ExportOptions(type="q4_0", blocks=blocks))
        made, original = registry.open_checkpoint(out), dense(DEEP)
        weight = "model.layers.3.mlp.down_proj.weight"
        error = made.weights[weight].read().dequantized() - original.weights[weight].read()
        errors[name] = float((error**2 * columns["blk.3.ffn_down.weight"]).sum())
    assert errors["led"] < 0.97 * errors["alone"]
