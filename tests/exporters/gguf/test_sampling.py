"""How a text is sampled by default: under the keys that llama.cpp reads, and back as generation_config.json."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import pytest

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.errors import MalformedFile
from quantkit.exporters.gguf.container.header import entry
from quantkit.exporters.gguf.container.types import ValueType
from quantkit.protocols import ExportOptions
from tests.exporters.gguf.test_reading import stranger, tokenizer_of
from tests.support.tokenizer_folders import IM_END, golden_files, opened

EXPORTER = registry.exporter("gguf")
ENDS = {"eos_token_id": [2, IM_END]}
ALL = {
    **ENDS,
    "do_sample": True,
    "temperature": 0.75,
    "top_k": 17,
    "top_p": 0.9,
    "min_p": 0.125,
    "repetition_penalty": 1.25,
}


def written(config: dict[str, Any], path: Path) -> tuple[Path, tuple[str, ...]]:
    files = {**golden_files(), "generation_config.json": json.dumps(config).encode()}
    artifact = EXPORTER.prepare(opened(files), ExportOptions(type="f16"))
    publish(artifact, path)
    return path, artifact.notes


def keys(path: Path) -> dict[str, Any]:
    """What gguf-py finds under general.sampling.*."""
    fields = gguf.GGUFReader(path).fields
    prefix = "general.sampling."
    return {name.removeprefix(prefix): f.contents() for name, f in fields.items() if name.startswith(prefix)}


def back(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(EXPORTER.read(path).files["generation_config.json"]())
    return config


CASES: dict[str, tuple[dict[str, Any], dict[str, float], str]] = {
    # generation_config.json, the keys, a word of the note ("" for none)
    "everything": (
        ALL,
        {"temp": 0.75, "top_k": 17, "top_p": 0.9, "min_p": 0.125, "penalty_repeat": 1.25},
        "repetition penalty",
    ),
    "MiniCPM4's": ({**ENDS, "do_sample": True, "temperature": 0.8, "top_p": 0.8}, {"temp": 0.8, "top_p": 0.8}, ""),
    "greedy": ({**ENDS, "do_sample": False, "temperature": 0.8}, {"temp": 0.0}, ""),
    "nothing": ({**ENDS, "transformers_version": "5.24.0", "pad_token_id": 2}, {}, ""),
    "nothing but nulls": ({**ENDS, "temperature": None, "top_k": None, "max_length": None}, {}, ""),
    "no top-k": ({**ENDS, "top_k": 0}, {"top_k": 0}, ""),
    "no penalty": ({**ENDS, "repetition_penalty": 1.0}, {"penalty_repeat": 1.0}, ""),
    "what llama.cpp does not know": (
        {**ENDS, "top_p": 0.5, "typical_p": 0.9},
        {"top_p": 0.5},
        "no notice of typical_p",
    ),
    "a length": ({**ENDS, "max_new_tokens": 512}, {}, "no notice of max_new_tokens"),
    "a text for a number": ({**ENDS, "temperature": "warm"}, {}, "no notice of temperature"),
    "out of range": ({**ENDS, "top_p": 1.5, "top_k": 1 << 40, "min_p": -1}, {}, "no notice of min_p, top_k, top_p"),
    "true for a number": ({**ENDS, "top_k": True, "temperature": True}, {}, "no notice of temperature, top_k"),
}


@pytest.mark.parametrize("case", CASES)
def test_defaults_stand_where_llama_cpp_looks_and_come_back_whole(case: str, tmp_path: Path) -> None:
    config, expected, word = CASES[case]
    path, notes = written(config, tmp_path / "m.gguf")
    assert keys(path) == pytest.approx(expected)
    told = [note for note in notes if "llama.cpp takes no notice" in note or "penalty" in note]
    assert any(word in note for note in told) if word else told == []
    assert back(path) == config


def test_the_types_are_those_of_gguf_py(tmp_path: Path) -> None:
    fields = gguf.GGUFReader(written(ALL, tmp_path / "m.gguf")[0]).fields
    writer = {"temp": "FLOAT32", "top_k": "INT32", "top_p": "FLOAT32", "min_p": "FLOAT32", "penalty_repeat": "FLOAT32"}
    assert {name: fields[f"general.sampling.{name}"].types[0].name for name in writer} == writer


PROPERTIES = """
import http.client, json, sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.warmup, params.fit_params, params.ui = sys.argv[1], 64, False, False, False
server = xllamacpp.Server(params)
connection = http.client.HTTPConnection(server.listening_address.partition("://")[2])
connection.request("GET", "/props")
print(json.dumps(json.loads(connection.getresponse().read())["default_generation_settings"]["params"]))
"""


@pytest.mark.engine("llama-cpp")
def test_llama_cpp_samples_by_them(tmp_path: Path) -> None:
    path, _ = written(ALL, tmp_path / "m.gguf")
    done = subprocess.run([sys.executable, "-c", PROPERTIES, str(path)], capture_output=True, check=True, timeout=120)
    found = json.loads(done.stdout.splitlines()[-1])
    names = {"temperature": 0.75, "top_k": 17, "top_p": 0.9, "min_p": 0.125, "repeat_penalty": 1.25}
    assert {name: found[name] for name in names} == pytest.approx(names)


def sampling(name: str, kind: ValueType, value: Any) -> bytes:
    return entry(f"general.sampling.{name}", kind, value)


STRANGERS: dict[str, tuple[list[bytes], dict[str, Any] | None]] = {
    "none": ([], None),
    "some": (
        [sampling("temp", ValueType.FLOAT32, 0.6), sampling("top_k", ValueType.INT32, 20)],
        {"do_sample": True, "temperature": 0.6, "top_k": 20},
    ),
    "greedy": ([sampling("temp", ValueType.FLOAT32, 0.0)], {"do_sample": False}),
    "no temperature": ([sampling("top_p", ValueType.FLOAT32, 0.9)], {"do_sample": True, "top_p": 0.9}),
    "a penalty": (
        [sampling("penalty_repeat", ValueType.FLOAT32, 1.1), sampling("min_p", ValueType.FLOAT32, 0.05)],
        {"do_sample": True, "repetition_penalty": 1.1, "min_p": 0.05},
    ),
    "what transformers does not know": ([sampling("mirostat", ValueType.INT32, 2)], None),
}


@pytest.mark.parametrize("case", STRANGERS)
def test_a_strangers_defaults_become_a_generation_config(case: str, tmp_path: Path) -> None:
    extra, expected = STRANGERS[case]
    checkpoint = EXPORTER.read(stranger(tmp_path / "m.gguf", extra=[*tokenizer_of(), *extra]))
    artifact = registry.exporter("hf").prepare(checkpoint, ExportOptions())
    assert ("generation_config.json" in [file.name for file in artifact.files]) is (expected is not None)
    if expected is not None:
        made = json.loads(checkpoint.files["generation_config.json"]())
        assert made == {**expected, "bos_token_id": 1, "eos_token_id": 2}
        from transformers import GenerationConfig  # noqa: PLC0415 - a second to import

        GenerationConfig(**made).validate(strict=True)


@pytest.mark.parametrize(
    "extra",
    [
        sampling("temp", ValueType.STRING, "hot"),
        sampling("top_k", ValueType.FLOAT32, 3.5),
        sampling("top_p", ValueType.BOOL, True),
        sampling("min_p", ValueType.FLOAT32, float("nan")),
        sampling("temp", ValueType.FLOAT32, float("inf")),
        entry("quantkit.generation_config", ValueType.STRING, "{"),
        entry("quantkit.generation_config", ValueType.STRING, "[1]"),
        entry("quantkit.generation_config", ValueType.UINT32, 1),
    ],
)
def test_keys_of_the_wrong_kind_are_refused(extra: bytes, tmp_path: Path) -> None:
    with pytest.raises(MalformedFile, match=r"general\.sampling\.|quantkit\.generation_config"):
        EXPORTER.read(stranger(tmp_path / "m.gguf", extra=[*tokenizer_of(), extra]))


def test_keys_that_were_changed_count_more_than_the_record(tmp_path: Path) -> None:
    record = json.dumps({"eos_token_id": 9, "temperature": 0.8, "max_new_tokens": 5})
    extra = [entry("quantkit.generation_config", ValueType.STRING, record)]
    changed = [*tokenizer_of(), *extra, sampling("temp", ValueType.FLOAT32, 0.25)]
    assert back(stranger(tmp_path / "m.gguf", extra=changed))["temperature"] == 0.25
    same = [*tokenizer_of(), *extra, sampling("temp", ValueType.FLOAT32, 0.8)]
    assert back(stranger(tmp_path / "same.gguf", extra=same)) == json.loads(record)
