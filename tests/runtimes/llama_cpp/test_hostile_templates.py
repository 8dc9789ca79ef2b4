"""A chat template is a program in the file. Neither road to llama.cpp runs it, whatever it is."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from quantkit.cli.app import main
from quantkit.runtimes.llama_cpp import runtime as runtime_module
from quantkit.runtimes.llama_cpp.library import UnknownLayout
from quantkit.runtimes.llama_cpp.runtime import RUNTIME
from quantkit.runtimes.llama_cpp.server_session import ServerSession
from quantkit.runtimes.llama_cpp.session import LlamaCppSession
from tests.support.gguf_writer import TOKENS, write_gguf

pytestmark = pytest.mark.engine("llama-cpp")
HOSTILE = {
    "an endless loop": "{% for i in range(10**9) %}{% for j in range(10**9) %}{% endfor %}{% endfor %}",
    "a loop of plain numbers": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a list of gigabytes": "{{ range(300000000) | list | length }}",
    "a text of gigabytes": "{{ 'x' * 5000000000 }}",
    "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a hundred thousand brackets": "{{" + "(" * 100_000 + "1" + ")" * 100_000 + "}}",
    "a filter that fails": "{{ messages | nosuchfilter }}",
    "an unfinished block": "{% if messages",
    "a refusal": "{{ raise_exception('no') }}",
}
SECONDS = 15.0
"""Of a run on a model of 0.5 MB, which takes 1 s on an idle machine."""


@pytest.fixture(scope="module", params=HOSTILE, ids=HOSTILE)
def hostile(request, checkpoint, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    return write_gguf(
        folder / "model.gguf", checkpoint, templates={None: HOSTILE[request.param], "tool_use": HOSTILE[request.param]}
    )


@pytest.mark.parametrize("kind", [LlamaCppSession, ServerSession])
def test_a_model_computes_what_it_computes_without_its_template(kind, hostile, file, checkpoint, native):
    begin = time.monotonic()
    with kind(hostile, checkpoint.spec) as session:
        row = session.next_logits(TOKENS[:7])
    assert time.monotonic() - begin < SECONDS
    expected = native.next_logits(TOKENS[:7])
    np.testing.assert_allclose(row - row.max(), expected - expected.max(), atol=1e-4)


@pytest.fixture(params=["its C API", "its server"])
def road(request, monkeypatch) -> None:
    """Both roads that `run` and `verify` may take."""

    def unknown(*_: object) -> None:
        raise UnknownLayout("as if this release were another one")

    if request.param == "its server":
        monkeypatch.setattr(runtime_module, "LlamaCppSession", unknown)


@pytest.mark.filterwarnings("ignore:llama.cpp runs slowly")
@pytest.mark.usefixtures("road")
def test_running_it_without_a_chat_gives_the_models_words(hostile, file, capsys):
    begin = time.monotonic()
    words = []
    for path in (file, hostile):
        assert main(["run", str(path), "--prompt", "word9 word8", "--engine", RUNTIME.name, "--max-tokens", "3"]) == 0
        words.append(capsys.readouterr().out)
    assert time.monotonic() - begin < SECONDS
    assert words[0] == words[1] != ""
