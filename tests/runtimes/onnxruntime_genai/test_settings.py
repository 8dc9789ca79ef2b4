"""What of a genai_config.json is let through to the engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quantkit.errors import EngineFailed, MalformedFile, QuantkitError, UnsafePath
from quantkit.runtimes.onnxruntime_genai.session import OnnxruntimeGenaiSession
from quantkit.runtimes.onnxruntime_genai.settings import context_of
from tests.support.memory import memory_checkpoint, tiny_config

GOOD = {
    "model": {
        "type": "decoder",
        "context_length": 64,
        "decoder": {"filename": "model.onnx", "session_options": {"provider_options": [], "log_id": "x"}},
    },
    "search": {"max_length": 64},
}


def changed(place: tuple[str, ...], value: Any) -> dict[str, Any]:
    config = json.loads(json.dumps(GOOD))
    part = config
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    return config


def written(folder: Path, config: dict[str, Any]) -> Path:
    (folder / "genai_config.json").write_text(json.dumps(config))
    return folder


def test_the_context_is_told(tmp_path):
    assert context_of(written(tmp_path, GOOD)) == 64


SESSION = ("model", "decoder", "session_options")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ((*SESSION, "custom_ops_library"), "/tmp/evil.so"),
        ((*SESSION, "ep.context_file_path"), "../x"),
        ((*SESSION, "session.load_model_format"), "ORT"),
        ((*SESSION, "provider_options"), [{"qnn": {"backend_path": "/tmp/evil.so"}}]),
        ((*SESSION, "provider_options"), {"qnn": {}}),
        (("plugin",), {"library": "/tmp/evil.so"}),
    ],
)
def test_what_could_load_a_library_is_refused(place, value, tmp_path):
    folder = written(tmp_path, changed(place, value))
    with pytest.raises(UnsafePath) as caught:
        context_of(folder)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(UnsafePath):  # before a process is started
        OnnxruntimeGenaiSession(folder, memory_checkpoint(tiny_config()).spec)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("model",), []),
        (("model", "decoder"), None),
        (SESSION, 3),
        (("model", "context_length"), "64"),
        (("model", "context_length"), 0),
        (("model", "context_length"), True),
    ],
)
def test_parts_that_are_missing_are_named(place, value, tmp_path):
    with pytest.raises(MalformedFile, match=place[-1]):
        context_of(written(tmp_path, changed(place, value)))


def test_no_json_is_one_line(tmp_path):
    (tmp_path / "genai_config.json").write_text('{"model": ')
    with pytest.raises(QuantkitError) as caught:
        context_of(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.engine("onnxruntime-genai")
def test_an_architecture_that_the_engine_does_not_know_is_its_refusal(tmp_path):
    folder = written(tmp_path, changed(("model", "type"), "minicpm"))
    with pytest.raises(EngineFailed, match=r"onnxruntime-genai: .*minicpm") as caught:
        OnnxruntimeGenaiSession(folder, memory_checkpoint(tiny_config()).spec)
    assert len(str(caught.value).splitlines()) == 1
