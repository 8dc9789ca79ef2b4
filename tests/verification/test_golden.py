"""Golden files: what is recorded is what the reference computes, and nothing but a whole, unchanged file is read."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from quantkit.artifacts.publishing import publish
from quantkit.errors import BadOption, GoldenMismatch, IncompleteFile, MalformedFile, QuantkitError
from quantkit.models.folding import folded
from quantkit.runtimes.reference.session import ReferenceSession
from quantkit.tensors.digests import values_digest
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.text.tokenizer import open_tokenizer
from quantkit.verification.golden import read_golden
from quantkit.verification.prompts import Prompt, default_prompts
from quantkit.verification.recording import record, recorded
from quantkit.verification.weight_facts import SKETCH_DEVIATION, Sketcher
from tests.support.memory import memory_checkpoint, tiny_config
from tests.support.quantized_models import linears, quantized_model

PROMPTS = [Prompt("one", "a", (5,)), Prompt("größer", "b\n", (1, 96, 0, 7))]


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    weights = folder / "weights"
    weights.write_bytes(b"the weight file")
    return publish(record(memory_checkpoint(tiny_config(), inputs=(weights,)), PROMPTS), folder / "golden.bin").path


@pytest.fixture
def golden_file(recording, tmp_path) -> Path:
    """A copy that the test may change."""
    return Path(shutil.copy(recording, tmp_path / "golden.bin"))


def rewritten(path: Path, *, header: bytes | None = None, version: int = 2, logits: bytes | None = None) -> Path:
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
    assert data[:12] == b"QKGOLDEN\x02\0\0\0"
    length = int.from_bytes(data[12:16], "little")
    header = json.loads(data[16 : 16 + length])
    assert header["command"] == "quantkit golden MODEL --out FILE"
    assert (header["spec"]["vocab_size"], header["spec"]["scale_emb"], header["quantized"]) == (97, 12.0, False)
    assert len(header["tensors"]) == len(memory_checkpoint(tiny_config()).weights)
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
    weights = tmp_path / "weights"
    weights.write_bytes(b"the weight file")
    publish(record(memory_checkpoint(tiny_config(), inputs=(weights,)), PROMPTS), again)
    assert again.read_bytes() == golden_file.read_bytes()


def test_every_field_of_the_model_comes_back(golden_file):
    assert read_golden(golden_file).spec == memory_checkpoint(tiny_config()).spec


def test_logits_are_read_when_they_are_taken(golden_file):
    golden = read_golden(golden_file)
    assert len(golden.logits) == 2
    assert [logits.shape for logits in golden.logits] == [(1, 97), (4, 97)]
    assert np.array_equal(golden.logits[-1], golden.logits[1])
    with pytest.raises(IndexError):
        golden.logits[2]


def test_a_tensor_is_recorded_as_every_dense_artifact_holds_it(golden_file):
    golden, checkpoint = read_golden(golden_file), memory_checkpoint(tiny_config())
    name = "model.layers.0.mlp.up_proj.weight"
    values, facts = checkpoint.weights[name].read().astype(np.float32), golden.tensors[name]
    for rounding, dtype in (("float32", np.float32), ("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)):
        assert facts.digests[rounding] == hashlib.sha256(values.astype(dtype).astype("<f4").tobytes()).hexdigest()
    assert facts.energy == pytest.approx(np.square(values, dtype=np.float64).sum())
    norm = golden.tensors["model.norm.weight"]
    assert norm.sketch is None
    assert np.array_equal(norm.values, checkpoint.weights["model.norm.weight"].read().astype(np.float32))


def test_what_folding_changes_is_recorded_folded(golden_file):
    golden, checkpoint = read_golden(golden_file), memory_checkpoint(tiny_config())
    plain = folded(checkpoint)
    for name, view in plain.weights.items():
        recorded_digests = golden.folded[name] if name in golden.folded else golden.tensors[name].digests
        assert recorded_digests["float32"] == values_digest(view.chunks()), name


def test_a_sketch_tells_the_distance_of_two_matrices():
    """Over many matrices the estimate's mean is right and its spread is the one that is promised."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((96, 200)).astype(np.float32)
    ratios = []
    for trial in range(200):
        error = 0.01 * random.standard_normal(weight.shape).astype(np.float32)
        one, other = Sketcher(f"w{trial}"), Sketcher(f"w{trial}")
        one.add(weight)
        for start in range(0, 96, 32):
            other.add((weight + error)[start : start + 32])
        found = np.square(one.sketch() - other.sketch()).sum()
        ratios.append(found / np.square(error, dtype=np.float64).sum())
    assert abs(np.mean(ratios) - 1) < 4 * SKETCH_DEVIATION / np.sqrt(200)
    assert 0.7 * SKETCH_DEVIATION < np.std(ratios) < 1.3 * SKETCH_DEVIATION


def test_rounding_costs_more_the_fewer_bits(golden_file):
    costs = read_golden(golden_file).rounding
    assert [cost.bits for cost in costs] == [8, 4, 3, 2]
    assert all(a.error < b.error / 3 for a, b in itertools.pairwise(costs))
    assert all(sum(a.kl) < sum(b.kl) for a, b in itertools.pairwise(costs))


def test_a_quantized_model_is_recorded_as_one():
    spec = AffineGroups(bits=4, group_size=32)
    model = quantized_model(tiny_config(), linears(spec))
    assert recorded(model, PROMPTS).quantized


def test_another_version_is_refused_with_the_command_that_regenerates_it(golden_file):
    with pytest.raises(GoldenMismatch, match="version 1") as caught:
        read_golden(rewritten(golden_file, version=1))
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
        ({"tensors": None}, "is missing"),
        ({"text": {}}, "tokenizer is damaged"),
        ({"tensors": {"model.norm.weight": {"shape": [4]}}}, "of a tensor is damaged"),
        ({"rounding": [{"bits": 4, "error": 0.1, "kl": [0.1]}]}, "what rounding costs is damaged"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(golden_file, changes, message):
    with pytest.raises(MalformedFile, match=message):
        read_golden(changed_header(golden_file, **changes))


@pytest.mark.parametrize("spec", [None, {}, {"vocab_size": 97}, {"vocab_size": 1 << 60, "rope": {}}])
def test_a_model_that_this_version_cannot_describe_is_refused(golden_file, spec):
    with pytest.raises(GoldenMismatch, match="not one that this version describes"):
        read_golden(changed_header(golden_file, spec=spec))


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
