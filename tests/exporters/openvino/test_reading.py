"""Graphs that are damaged, hostile, or of another tool: one line each, nothing outside the folder opened."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from quantkit import registry
from quantkit.errors import (
    IncompleteCheckpoint,
    IncompleteFile,
    InconsistentCheckpoint,
    MalformedFile,
    QuantkitError,
    UnsafePath,
    UnsupportedModel,
)
from quantkit.tensors.views import QuantizedView
from tests.support.opened import opened_paths
from tests.support.openvino_folders import GRIDS, everything, exported

XML, BIN = "openvino_model.xml", "openvino_model.bin"
MUTANTS = 300


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    return exported(everything(GRIDS["int4-g32-sym"]), tmp_path_factory.mktemp("sound") / "sound")


@pytest.fixture
def folder(sound, tmp_path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "model"))


def replaced(old: str, new: str, count: int = 1) -> Callable[[Path], None]:
    """Change the XML."""

    def change(folder: Path) -> None:
        text = (folder / XML).read_text()
        assert re.search(old, text)
        (folder / XML).write_text(re.sub(old, new, text, count=count))

    return change


def first_constant(**attributes: str) -> Callable[[Path], None]:
    """Change attributes of the embedding's codes."""

    def change(folder: Path) -> None:
        text = (folder / XML).read_text()
        begin = text.index("<data element_type")
        end = text.index("/>", begin)
        tag = text[begin:end]
        for name, value in attributes.items():
            tag = re.sub(rf'{name}="[^"]*"', f'{name}="{value}"', tag)
        (folder / XML).write_text(text[:begin] + tag + text[end:])

    return change


def truncated(name: str, size: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:size] if size >= 0 else data + bytes(-size))

    return change


def constants_changed(folder: Path) -> None:
    data = bytearray((folder / BIN).read_bytes())
    data[-1] ^= 1
    (folder / BIN).write_bytes(data)


ENTITIES = '<!DOCTYPE net [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]>\n<net'
OUTSIDE = '<!DOCTYPE net SYSTEM "file:///etc/passwd">\n<net'


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (first_constant(offset="-64"), MalformedFile, "has the offset '-64'"),
        (first_constant(size="-1"), MalformedFile, "has the size '-1'"),
        (first_constant(offset="999999999"), IncompleteFile, "ends at 1,0"),
        (first_constant(offset="9" * 40), MalformedFile, "has the offset"),
        (first_constant(offset="0x40"), MalformedFile, "has the offset '0x40'"),
        (first_constant(offset="٤"), MalformedFile, "has the offset"),
        (first_constant(size="64"), InconsistentCheckpoint, "model.embed_tokens.weight"),
        (first_constant(offset="64"), UnsupportedModel, "line .* differs"),
        (first_constant(shape="320, 128"), UnsupportedModel, "line .* differs"),
        (first_constant(shape="319, 4, 32"), InconsistentCheckpoint, r"\[319, 4, 32\]"),
        (first_constant(shape="320, 4, 0"), UnsupportedModel, "no scales that are understood"),
        (first_constant(shape="-320, 4, 32"), MalformedFile, "no shape that is known"),
        (first_constant(shape=""), MalformedFile, "no shape that is known"),
        (first_constant(element_type="u4"), UnsupportedModel, "line .* differs"),
        (first_constant(element_type="i8"), InconsistentCheckpoint, "model.embed_tokens.weight"),
        (first_constant(element_type="nf4"), UnsupportedModel, "type 'nf4'"),
        (replaced('"model.norm.weight"', '"model.norms.weight"'), IncompleteCheckpoint, "'model.norm.weight'"),
        (replaced('"model.norm.weight"', '"model.embed_tokens.weight"'), MalformedFile, "two constants"),
        (replaced('type="Add"', 'type="Subtract"'), UnsupportedModel, "line .* differs"),
        (replaced("</net>", "</net><net/>"), MalformedFile, "no XML"),
        (replaced("</net>", ""), MalformedFile, "no XML"),
        (replaced("</net>", "</net><!-- -->"), UnsupportedModel, "line .* differs"),
        (replaced("<net", ENTITIES), MalformedFile, "document type"),
        (replaced("<net", OUTSIDE), MalformedFile, "document type"),
        (replaced("<layers>", "<a>" * 100 + "<layers>"), MalformedFile, "deep"),
        (replaced(r"\?>", ' encoding="no-such"?>'), MalformedFile, "no XML"),
        (truncated(XML, 0), MalformedFile, "no XML"),
        (truncated(XML, 5000), MalformedFile, "no XML"),
        (truncated(BIN, 0), IncompleteFile, "has 0 bytes"),
        (truncated(BIN, 70_000), IncompleteFile, "70,000 bytes"),
        (truncated(BIN, -64), MalformedFile, "its graph makes that"),
        (constants_changed, UnsupportedModel, "constants of the graph"),
        (lambda folder: (folder / BIN).unlink(), IncompleteCheckpoint, "openvino_model.bin is missing"),
    ],
)
def test_a_damaged_graph_is_refused(change, error, words, folder):
    change(folder)
    with pytest.raises(error, match=words) as caught:
        registry.exporter("openvino").read(folder)
    assert str(folder) in str(caught.value)


def test_a_config_of_another_model_is_refused(folder):
    config = (folder / "config.json").read_text()
    for old, new in (
        ('"num_hidden_layers": 2', '"num_hidden_layers": 1000'),
        ('"num_hidden_layers": 2', '"num_hidden_layers": 1'),
        ('"vocab_size": 320', '"vocab_size": 321'),
        ('"scale_emb": 12', '"scale_emb": 11'),
        ('"rope_theta": 10000.0', '"rope_theta": 10001.0'),
        ('"rms_norm_eps": 1e-05', '"rms_norm_eps": 1e-06'),
        ('"num_attention_heads": 4', '"num_attention_heads": 2'),
    ):
        assert old in config
        (folder / "config.json").write_text(config.replace(old, new))
        with pytest.raises((UnsupportedModel, InconsistentCheckpoint, IncompleteCheckpoint)):
            registry.exporter("openvino").read(folder)


@pytest.mark.parametrize("name", [XML, BIN])
def test_a_link_out_of_the_folder_is_not_followed(name, folder, tmp_path, monkeypatch):
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    opened = opened_paths(monkeypatch)
    with pytest.raises(UnsafePath, match=name):
        registry.exporter("openvino").read(folder)
    assert str(tmp_path / "elsewhere") not in opened


def test_a_graph_of_another_tool_is_told(tmp_path, folder):
    ov = pytest.importorskip("openvino")
    model = ov.Core().read_model(str(folder / XML))
    ov.save_model(model, str(tmp_path / "other.xml"), compress_to_fp16=False)
    del model
    for kind in ("xml", "bin"):
        shutil.move(tmp_path / f"other.{kind}", folder / f"openvino_model.{kind}")
    with pytest.raises(QuantkitError) as caught:
        registry.exporter("openvino").read(folder)
    assert "only graphs that quantkit wrote" in (caught.value.hint or "")


def test_codes_that_a_ternary_weight_cannot_have_are_refused(tmp_path):
    path = exported(everything(GRIDS["ternary-g64"]), tmp_path / "out")
    data = bytearray((path / BIN).read_bytes())
    data[0] = 0xFF
    (path / BIN).write_bytes(data)
    view = registry.exporter("openvino").read(path).weights["model.embed_tokens.weight"]
    assert isinstance(view, QuantizedView)
    with pytest.raises(QuantkitError, match=r"model\.embed_tokens\.weight"):
        view.read()


def test_whatever_is_damaged_gets_an_answer_or_is_what_it_was(folder):
    """Mutants of the graph are refused, all of them; of the weights, refused or read as other codes."""
    text, data = (folder / XML).read_bytes(), (folder / BIN).read_bytes()
    reader, rng = registry.exporter("openvino"), random.Random(0)
    for number in range(MUTANTS):
        mutant = mutated(text, rng)
        (folder / XML).write_bytes(mutant)
        if mutant == text:
            continue
        with pytest.raises(QuantkitError) as caught:
            reader.read(folder)
        assert len(str(caught.value)) <= 500, number
    (folder / XML).write_bytes(text)
    for _ in range(MUTANTS // 4):
        (folder / BIN).write_bytes(mutated(data, rng))
        try:
            for view in reader.read(folder).weights.values():
                view.read()
        except QuantkitError:
            pass


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, a piece cut out, said twice, cut off, or a number replaced by a hostile one."""
    at, other = sorted(rng.randrange(len(data)) for _ in range(2))
    kind = rng.randrange(5)
    if kind == 0:
        return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
    if kind == 1:
        return data[:at] + data[min(other, at + 400) :]
    if kind == 2:
        return data[: at + 100] + data[at:]
    if kind == 3:
        return data[:at]
    numbers = list(re.finditer(rb'"\d+"', data[at:])) or list(re.finditer(rb'"\d+"', data))
    if not numbers:
        return data[:at]
    match = numbers[0] if data[at:].find(numbers[0][0]) >= 0 else rng.choice(numbers)
    hostile = rng.choice([b'"-1"', b'"0"', b'"18446744073709551616"', b'"1e9"', b'""', b'"4294967295"'])
    begin = data.find(match[0], at)
    return data[:begin] + hostile + data[begin + len(match[0]) :]
