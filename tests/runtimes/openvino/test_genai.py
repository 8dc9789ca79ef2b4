"""OpenVINO GenAI's `LLMPipeline` on the exported folder as it is: tokens by ids, and what becomes of a text.

It gives tokens and no logits, so it is a witness here and no engine of quantkit. A process of its own, without network:
whatever would be fetched is missing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quantkit import registry
from quantkit.text.tokenizer import open_tokenizer
from tests.support.openvino_folders import GRIDS, exported
from tests.support.runs import quantized

pytest.importorskip("openvino_genai")
pytestmark = pytest.mark.engine("openvino")
COUNT = 64
TEXT = "The river ran  past the mill.\n"
PROBE = """
import json, socket, sys
def refused(*_): raise OSError("no network here")
socket.socket.connect = refused
import numpy, openvino, openvino_genai as genai
path, prompts, settings, text, count = json.loads(sys.argv[1])
pipe = genai.LLMPipeline(path, "CPU", **settings)
greedy = genai.GenerationConfig(max_new_tokens=count, ignore_eos=True, do_sample=False)
def tokens(ids):
    given = numpy.array([ids], numpy.int64)
    inputs = genai.TokenizedInputs(openvino.Tensor(given), openvino.Tensor(numpy.ones_like(given)))
    return list(pipe.generate(inputs, greedy).tokens[0])
answer = {"tokens": [tokens(ids) for ids in prompts], "stops": sorted(pipe.get_generation_config().stop_token_ids)}
if text is not None:
    tokenizer = pipe.get_tokenizer()
    plain = genai.GenerationConfig(max_new_tokens=8, ignore_eos=True, do_sample=False, apply_chat_template=False)
    chat = genai.GenerationConfig(max_new_tokens=8, ignore_eos=True, do_sample=False)
    answer["ids"] = tokenizer.encode(text).input_ids.data[0].tolist()
    answer["plain"], answer["chat"] = pipe.generate(text, plain), pipe.generate(text, chat)
    answer["template"] = tokenizer.apply_chat_template([{"role": "user", "content": text}], True)
print(json.dumps(answer))
"""


def asked(path: Path, prompts: list[list[int]], text: str | None = None, **settings: str) -> dict[str, Any]:
    request = json.dumps([str(path), prompts, settings, text, COUNT])
    done = subprocess.run([sys.executable, "-c", PROBE, request], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def greedy(path: Path, ids: list[int], count: int = COUNT) -> list[int]:
    """The reference's likeliest tokens."""
    oracle, sequence = registry.runtime("reference").open(path), [*ids]
    for _ in range(count):
        sequence.append(int(oracle.next_logits(sequence).argmax()))
    return sequence[len(ids) :]


@pytest.fixture(scope="module")
def golden(golden_model):
    return registry.open_checkpoint(golden_model)


@pytest.fixture(scope="module")
def prompts(golden) -> list[list[int]]:
    tokenizer = open_tokenizer(golden)
    return [tokenizer.encode(text) for text in ("The river", "def f(x):\n    return", "日本")]


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("int4-g128-sym", "PA"),
        ("int4-g128-sym", "SDPA"),
        ("int4-g128-asym", "PA"),
        ("int4-g32-sym", "SDPA"),
        ("int2-g64-sym", "PA"),
    ],
)
def test_its_tokens_are_the_references(name, backend, golden, prompts, tmp_path):
    """64 of them after three prompts, in either of its two ways to keep keys and values."""
    path = exported(quantized(golden, GRIDS[name], "rtn").checkpoint, tmp_path / "out")
    answer = asked(path, prompts, EXECUTION_MODE_HINT="ACCURACY", ATTENTION_BACKEND=backend)
    assert answer["tokens"] == [greedy(path, ids) for ids in prompts]
    assert answer["stops"] == sorted(golden.spec.eos_token_ids)


def test_a_model_without_a_tokenizer_runs_by_ids(tmp_path, golden, prompts):
    bare = replace(golden, files={})
    path = exported(bare, tmp_path / "out")
    assert not (path / "openvino_tokenizer.xml").exists()
    answer = asked(path, prompts[:1], EXECUTION_MODE_HINT="ACCURACY")
    assert answer["tokens"] == [greedy(path, prompts[0])]


def test_what_it_does_to_a_text(tmp_path, golden):
    """Its ids are the model's, BOS first. `generate` wraps a text as the user's turn unless it is told not to, and puts
    no BOS before the turn."""
    path = exported(golden, tmp_path / "out")
    answer = asked(path, [], TEXT, EXECUTION_MODE_HINT="ACCURACY")
    own = open_tokenizer(golden)
    turn = own.chat([{"role": "user", "content": TEXT}])
    assert answer["ids"] == own.encode(TEXT)
    assert answer["template"] == turn
    for kind, ids in (("plain", own.encode(TEXT)), ("chat", own.encode(turn, add_bos=False))):
        text = own.decode(greedy(path, ids, 8), specials=False)
        assert answer[kind].strip() == text.strip(), kind
