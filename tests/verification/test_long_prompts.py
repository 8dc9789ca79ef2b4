"""What is longer than the model's context is refused before anything is computed, by every engine and every verb."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from quantkit import Sampling, generate, registry
from quantkit.artifacts.publishing import publish
from quantkit.cli.app import main
from quantkit.errors import BadOption
from quantkit.models.context import check_length
from quantkit.protocols import ExportOptions
from quantkit.verification.prompts import Prompt
from quantkit.verification.proof import verify
from quantkit.verification.recording import recorded
from tests.support.tiny import write_tiny_checkpoint

CONTEXT = 1024
"""Of the tiny models."""
ROOT = Path(__file__).resolve().parents[2]
MILLION = "word " * 1_000_000


@pytest.fixture(scope="module")
def artifacts(golden_model, tmp_path_factory) -> dict[str, Path]:
    """The trained model in a container for each engine."""
    folder, checkpoint = tmp_path_factory.mktemp("long"), registry.open_checkpoint(golden_model)
    made = {"reference": golden_model}
    for engine, container, options in (
        ("llama-cpp", "gguf", ExportOptions(type="f32")),
        ("transformers", "hf", ExportOptions(arch="llama")),
    ):
        planned = registry.exporter(container).prepare(checkpoint, options)
        made[engine] = publish(planned, folder / f"model-{container}").path
    return made


ENGINES = [
    "reference",
    pytest.param("llama-cpp", marks=pytest.mark.engine("llama-cpp")),
    pytest.param("transformers", marks=pytest.mark.engine("transformers")),
]


def context_of(path: Path) -> int:
    return registry.open_checkpoint(path).spec.max_position_embeddings


@pytest.mark.parametrize("engine", ENGINES)
def test_a_prompt_beyond_the_context_is_refused_before_the_engine_starts(engine, artifacts, monkeypatch):
    path = artifacts[engine]
    monkeypatch.setattr(type(registry.runtime(engine)), "open", lambda *_: pytest.fail("the engine was started"))
    with pytest.raises(BadOption, match=rf"^the prompt of \d+ tokens and 1 to come exceeds .* of {context_of(path)}$"):
        generate(path, "word " * context_of(path), engine=engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_refuses_too_many_tokens_and_takes_all_that_fit(engine, artifacts):
    path = artifacts[engine]
    limit = context_of(path)
    with registry.runtime(engine).open(path) as session:
        for ask in (session.logits, session.next_logits):
            with pytest.raises(BadOption, match=f"{limit + 1} tokens exceeds the model's context of {limit}"):
                ask([5] * (limit + 1))
        with pytest.raises(BadOption, match=f"1000000 tokens exceeds the model's context of {limit}"):
            session.next_logits([5] * 1_000_000)
        assert session.next_logits([5] * limit).shape == (registry.open_checkpoint(path).spec.vocab_size,)
        with pytest.raises(BadOption):  # also when the tokens before it are known already
            session.next_logits([5] * (limit + 1))


@pytest.mark.parametrize("verb", ["run --chat", "run --json"])
def test_a_million_words_end_in_one_line(verb, golden_model, capsys):
    name, *options = verb.split()
    begin = time.monotonic()
    assert main([name, str(golden_model), "--prompt", MILLION, "--engine", "reference", *options]) == 2
    assert time.monotonic() - begin < 30  # measured 2.5 s, for reading the words
    said = capsys.readouterr()
    error = said.out if "--json" in options else said.err
    assert f"exceeds the model's context of {context_of(golden_model)}" in " ".join(error.split())


def with_context(model: Path, folder: Path, context: int) -> Path:
    """A copy of a model that is made for `context` tokens."""
    shutil.copytree(model, folder)
    config = json.loads((model / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": context}))
    return folder


def test_a_text_ends_where_the_context_does_and_says_so(tmp_path, golden_model, capsys):
    small = with_context(golden_model, tmp_path / "small", 24)
    whole = generate(golden_model, "def f(x):", Sampling(max_tokens=30), engine="reference")
    assert list(whole)
    cut = generate(small, "def f(x):", Sampling(max_tokens=30), engine="reference")
    assert list(cut)
    assert 0 < len(cut.token_ids) < len(whole.token_ids)
    note = "the text ends where the model's context of 24 tokens does"
    assert (cut.notes, whole.notes) == ([note], [])
    assert main(["run", str(small), "--prompt", "def f(x):", "--engine", "reference"]) == 0
    assert note in " ".join(capsys.readouterr().err.split())


def test_prompts_of_a_golden_file_stay_below_the_context(tiny_checkpoint):
    checkpoint = registry.open_checkpoint(tiny_checkpoint)
    assert checkpoint.spec.max_position_embeddings == CONTEXT
    with pytest.raises(BadOption, match=f"prompt 'long' of {CONTEXT} tokens and 1 to come exceeds"):
        recorded(checkpoint, [Prompt("short", "", (1, 5)), Prompt("long", "", (7,) * CONTEXT)])


def test_a_golden_file_with_a_longer_prompt_is_refused(tiny_checkpoint):
    golden = recorded(registry.open_checkpoint(tiny_checkpoint), [Prompt("one", "", (1, 5, 9))])
    long = replace(golden, prompts=(Prompt("long", "", (7,) * 1_000_000),))
    with pytest.raises(BadOption, match="prompt 'long' of 1000000 tokens and 1 to come exceeds"):
        verify(tiny_checkpoint, golden=long, engine="reference", needs_manifest=False)


@pytest.mark.parametrize(("tokens", "to_come"), [(64, 0), (63, 1), (0, 64), (1, 0)])
def test_what_fits_is_let_through(tokens, to_come):
    check_length(SimpleNamespace(max_position_embeddings=64), tokens, to_come=to_come)


@pytest.mark.parametrize(("tokens", "to_come"), [(65, 0), (64, 1), (1 << 40, 0), (0, 65)])
def test_what_does_not_is_refused_with_both_numbers(tokens, to_come):
    with pytest.raises(BadOption, match=rf"{tokens} tokens.* of 64$"):
        check_length(SimpleNamespace(max_position_embeddings=64), tokens, to_come=to_come)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the largest memory in this way")
def test_a_long_prompt_within_the_context_takes_memory_for_its_tokens_not_for_their_square(tmp_path):
    """Scores of all heads at once would be 400 MB; what lies between two lengths grows by 1 kB a token and layer."""
    model = write_tiny_checkpoint(tmp_path / "m", hidden=64, intermediate=96, heads=4, kv_heads=2, context=1 << 20)
    peaks = {}
    for length in (1000, 5000):
        program = (
            "import resource, sys; from pathlib import Path; from quantkit import registry\n"
            "with registry.runtime('reference').open(Path(sys.argv[1])) as session:\n"
            "    session.next_logits([7] * int(sys.argv[2]))\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        command = [sys.executable, "-c", program, str(model), str(length)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        peaks[length] = int(done.stdout) << 10
    assert peaks[5000] - peaks[1000] < 130 << 20
