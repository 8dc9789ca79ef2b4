"""Golden files: what is recorded is what the reference computes, and nothing but a whole, unchanged file is read."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest

from quantkit.artifacts.publishing import publish
from quantkit.errors import BadOption, GoldenMismatch, IncompleteFile, MalformedFile, QuantkitError
from quantkit.runtimes.reference.runtime import ReferenceSession
from quantkit.text.tokenizer import open_tokenizer
from quantkit.verification.golden import read_golden, record
from quantkit.verification.prompts import Prompt, default_prompts
from tests.support.memory import memory_checkpoint, tiny_config

PROMPTS = [Prompt("one", "a", (5,)), Prompt("größer", "b\n", (1, 96, 0, 7))]


@pytest.fixture
def golden_file(tmp_path) -> Path:
    weights = tmp_path / "weights"
    weights.write_bytes(b"the weight file")
    path = tmp_path / "golden.bin"
    publish(record(memory_checkpoint(tiny_config(), inputs=(weights,)), PROMPTS), path)
    return path


def rewritten(path: Path, *, header: bytes | None = None, version: int = 1, logits: bytes | None = None) -> Path:
    """The file with parts replaced and its digest made right again, by the documented layout."""
    data = path.read_bytes()
    length = struct.unpack("<I", data[12:16])[0]
    header = data[16 : 16 + length] if header is None else header
    body = b"QKGOLDEN" + struct.pack("<II", version, len(header)) + header
    body += data[16 + length : -32] if logits is None else logits
    path.write_bytes(body + hashlib.sha256(body).digest())
    return path


def changed_header(path: Path, **changes: object) -> Path:
    data = path.read_bytes()
    header = json.loads(data[16 : 16 + struct.unpack("<I", data[12:16])[0]])
    return rewritten(path, header=json.dumps({**header, **changes}).encode())


def test_the_file_is_laid_out_as_documented(golden_file):
    data = golden_file.read_bytes()
    assert data[:12] == b"QKGOLDEN\x01\0\0\0"
    length = int.from_bytes(data[12:16], "little")
    header = json.loads(data[16 : 16 + length])
    assert header["command"] == "quantkit golden MODEL --out FILE"
    assert header["model"] == {"vocab_size": 97, "hidden_size": 64, "num_hidden_layers": 3}
    assert [prompt["token_ids"] for prompt in header["prompts"]] == [[5], [1, 96, 0, 7]]
    digest = hashlib.sha256(b"the weight file").hexdigest()
    assert header["source"] == [{"name": "weights", "size": 15, "sha256": digest}]
    assert len(data) == 16 + length + 4 * (1 + 4) * 97 + 32
    assert data[-32:] == hashlib.sha256(data[:-32]).digest()


def test_the_logits_are_those_of_the_reference_runtime(golden_file):
    golden = read_golden(golden_file)
    assert golden.prompts == tuple(PROMPTS)
    session = ReferenceSession(memory_checkpoint(tiny_config()))
    for prompt, logits in zip(golden.prompts, golden.logits, strict=True):
        assert logits.dtype == np.float32
        # Two float32 forward passes over logits of order one.
        np.testing.assert_allclose(logits, session.logits(prompt.token_ids), atol=1e-5)


def test_recording_twice_gives_the_same_bytes(golden_file, tmp_path):
    again = tmp_path / "again.bin"
    publish(record(memory_checkpoint(tiny_config(), inputs=(tmp_path / "weights",)), PROMPTS), again)
    assert again.read_bytes() == golden_file.read_bytes()


def test_a_golden_file_belongs_to_models_of_its_dimensions(golden_file):
    golden = read_golden(golden_file)
    golden.check_model(memory_checkpoint(tiny_config()).spec.folded(), where="model")
    other = memory_checkpoint(tiny_config(vocab_size=98)).spec
    with pytest.raises(GoldenMismatch, match="vocab_size is 98, the golden file is of a model with 97"):
        golden.check_model(other, where="model")


def test_another_version_is_refused_with_the_command_that_regenerates_it(golden_file):
    with pytest.raises(GoldenMismatch, match="version 2") as caught:
        read_golden(rewritten(golden_file, version=2))
    assert "quantkit golden MODEL --out FILE" in str(caught.value.hint)


def test_another_kind_of_file_is_refused(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(MalformedFile, match="is not a golden file"):
        read_golden(path)


@pytest.mark.parametrize("kept", [0, 15, 16, 200, -33, -1])
def test_every_truncation_is_noticed(golden_file, kept):
    golden_file.write_bytes(golden_file.read_bytes()[:kept])
    with pytest.raises(IncompleteFile):
        read_golden(golden_file)


def test_trailing_bytes_are_refused(golden_file):
    golden_file.write_bytes(golden_file.read_bytes() + b"\0")
    with pytest.raises(MalformedFile, match="its header promises"):
        read_golden(golden_file)


@pytest.mark.parametrize("place", [16 + 40, -33, -1])
def test_a_flipped_bit_is_noticed(golden_file, place):
    data = bytearray(golden_file.read_bytes())
    data[place] ^= 1
    golden_file.write_bytes(data)
    with pytest.raises(QuantkitError):
        read_golden(golden_file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": []}, "is missing"),
        ({"prompts": [{"name": "x", "text": "x", "token_ids": []}]}, "needs a name"),
        ({"prompts": [{"name": "x", "text": "x", "token_ids": [97]}]}, "outside the vocabulary"),
        ({"prompts": [{"name": "x", "text": "x", "token_ids": [True]}]}, "outside the vocabulary"),
        ({"prompts": ["x"]}, "needs a name"),
        ({"source": ["x"]}, "list of objects"),
        ({"model": {"vocab_size": 1 << 60, "hidden_size": 1, "num_hidden_layers": 1}}, "vocab_size"),
        ({"model": None}, "is missing"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(golden_file, changes, message):
    with pytest.raises(MalformedFile, match=message):
        read_golden(changed_header(golden_file, **changes))


def test_prompts_outside_the_vocabulary_are_not_recorded():
    with pytest.raises(GoldenMismatch, match="outside the vocabulary of 97"):
        record(memory_checkpoint(tiny_config()), [Prompt("x", "x", (97,))])
    with pytest.raises(BadOption, match="has no tokens"):
        record(memory_checkpoint(tiny_config()), [Prompt("x", "x", ())])


def test_the_bundled_prompts_reach_what_conversions_break(golden_model):
    names = ("tokenizer.model", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json")
    files = {name: (golden_model / name).read_bytes() for name in names}
    tokenizer = open_tokenizer(memory_checkpoint(tiny_config(vocab_size=2048), files=files))
    prompts = {prompt.name: prompt for prompt in default_prompts(tokenizer, max_tokens=1024)}
    assert list(prompts) == ["code", "english", "chinese", "chat", "one token", "long"]
    bos = tokenizer.beginning
    assert all(prompt.token_ids[:1] == tuple(bos) for prompt in prompts.values())
    assert len(prompts["one token"].token_ids) == 1
    assert len(prompts["long"].token_ids) == 512
    pieces = {name: [tokenizer.bytes_of(token) for token in prompt.token_ids] for name, prompt in prompts.items()}
    assert sum(len(piece) == 1 and piece[0] >= 0x80 for piece in pieces["chinese"]) > 50  # byte fallback
    assert pieces["chat"].count(b"<|im_start|>") == 2
    short = default_prompts(tokenizer, max_tokens=21)
    assert max(len(prompt.token_ids) for prompt in short) == 20
