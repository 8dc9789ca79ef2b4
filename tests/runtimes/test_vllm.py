"""vLLM: what is asked of it and what is refused, with a child that stands in for it; and the real one where it is."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.errors import BadOption, EngineFailed, MissingDependency
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import Role
from quantkit.protocols import ExportOptions
from quantkit.runtimes import vllm
from quantkit.runtimes._staged_folder import staged_folder
from quantkit.runtimes._vllm_server import log_prob_rows
from quantkit.runtimes.reference.session import ReferenceSession
from quantkit.runtimes.vllm import RUNTIME, VLLMSession
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.verification.metrics import max_abs_log_prob_difference, top1_agreement
from tests.support.quantized_models import linears, quantized_model
from tests.support.tiny import tiny_config

SPEC = AffineGroups(bits=4, group_size=64)
TOKENS = list(range(1, 41))
VOCABULARY = 300

FAKE = """import json, struct, sys
SAY = json.loads(sys.argv[1])
for line in sys.stdin:
    request = json.loads(line)
    if request["do"] == "load":
        with open(SAY["log"], "a") as log: print(json.dumps(request), file=log)
        print("{}", flush=True)
        continue
    rows = len(request["token_ids"]) if request["do"] == "logits" else 1
    values = [SAY["value"]] * (rows * SAY["vocabulary"])
    data = struct.pack(f"={len(values)}f", *values)
    sys.stdout.buffer.write(json.dumps({"bytes": len(data)}).encode() + b"\\n" + data)
    sys.stdout.flush()"""


def fake_session(tmp_path: Path, *, config: Mapping[str, Any], value: str = "-1", vocabulary: int = VOCABULARY):
    """A session whose engine answers `value` everywhere and notes how it was loaded in the file `loads`."""
    say = json.dumps({"log": str(tmp_path / "loads"), "value": float(value), "vocabulary": vocabulary})
    spec = quantized_model(config, linears(SPEC)).spec
    return VLLMSession(
        tmp_path,
        spec,
        command=[sys.executable, "-I", "-c", FAKE, say],
        dtype="float16",
        staged=lambda: nullcontext(tmp_path),
    )


def loads(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "loads").read_text().splitlines()]


def published(checkpoint: Checkpoint, path: Path, *, name: str = "compressed-tensors", **options: str) -> Path:
    return publish(registry.exporter(name).prepare(checkpoint, ExportOptions(**options)), path).path


@pytest.fixture(scope="module")
def native(tmp_path_factory) -> Path:
    """A quantized native folder; half of its scales are negative."""
    model = quantized_model(tiny_config(), linears(SPEC))
    return published(model, tmp_path_factory.mktemp("vllm") / "native")


def refusal(path: Path) -> str:
    return RUNTIME.refuses(registry.open_checkpoint(path)) or ""


def changed(folder: Path, copy: Path, **changes: object) -> Path:
    shutil.copytree(folder, copy)
    config = json.loads((folder / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **changes}))
    return copy


def test_the_engine_is_loaded_once_for_many_prompts(tmp_path):
    with fake_session(tmp_path, config=tiny_config()) as session:
        assert session.logits(TOKENS).shape == (40, VOCABULARY)
        assert session.next_logits(TOKENS).shape == (VOCABULARY,)
        assert session.logits([5]).dtype == np.float32
    assert loads(tmp_path) == [
        {"do": "load", "path": str(tmp_path), "dtype": "float16", "max_model_len": 1024, "code": True}
    ]


def test_a_sequence_that_crosses_longropes_border_starts_the_engine_anew(tmp_path):
    scaling = {
        "rope_type": "longrope",
        "short_factor": [1.0] * 32,
        "long_factor": [2.0] * 32,
        "original_max_position_embeddings": 16,
    }
    config = {**tiny_config(), "rope_scaling": scaling}
    with fake_session(tmp_path, config=config) as session:
        for length in (3, 15, 17, 40, 5):
            session.logits(TOKENS[:length])
    assert [load["max_model_len"] for load in loads(tmp_path)] == [16, 1024, 16]


def test_a_sequence_longer_than_the_model_allows_is_refused(tmp_path):
    with fake_session(tmp_path, config=tiny_config(context=32)) as session:
        assert session.logits(TOKENS[:31]).shape == (31, VOCABULARY)
        with pytest.raises(BadOption, match="32 tokens"):
            session.logits(TOKENS[:32])


@pytest.mark.parametrize(
    ("vocabulary", "value", "reason"),
    [(301, "-1", "301 log-probs in place of 300"), (300, "nan", "NaN in float16")],
)
def test_answers_that_cannot_be_right_are_noticed(tmp_path, vocabulary, value, reason):
    session = fake_session(tmp_path, config=tiny_config(), vocabulary=vocabulary, value=value)
    with session, pytest.raises(EngineFailed, match=reason):
        session.next_logits([1])


@pytest.mark.parametrize("ids", [[], [VOCABULARY], [-1]])
def test_tokens_that_do_not_exist_are_refused(tmp_path, ids):
    with fake_session(tmp_path, config=tiny_config()) as session, pytest.raises(BadOption):
        session.logits(ids)


def test_rows_are_put_in_the_order_of_the_vocabulary():
    rows = SimpleNamespace(
        start_indices=[0, 0, 4], end_indices=[0, 4, 8], token_ids=[2, 0, 2, 1, 1, 1, 0, 2], logprobs=[*range(8)]
    )
    empty, first, second = log_prob_rows(rows)
    assert empty.size == 0
    assert first.tolist() == [1, 3, 2]
    assert second.tolist() == [6, 5, 7]


def test_our_native_folder_is_taken(native):
    assert refusal(native) == ""


def test_it_computes_in_the_type_that_suits_the_weights(native, tmp_path, monkeypatch):
    dense = published(quantized_model(tiny_config(), lambda slot: None), tmp_path / "dense", name="hf", type="f16")
    monkeypatch.setattr(vllm, "VLLMSession", lambda path, spec, **chosen: chosen["dtype"])
    monkeypatch.setattr(vllm, "interpreter", lambda: Path("python"))
    assert [RUNTIME.open(folder) for folder in (native, dense)] == ["float16", "float32"]
    assert RUNTIME.open_in(dense, "float16") == "float16"


def test_only_our_own_config_class_is_ever_run(native, tmp_path):
    without = changed(native, tmp_path / "without")
    (without / "configuration_minicpm.py").unlink()
    assert "that quantkit writes" in refusal(without)
    other = changed(native, tmp_path / "other")
    (other / "configuration_minicpm.py").write_bytes(
        (native / "configuration_minicpm.py").read_bytes() + b"\nprint('evil')\n"
    )
    assert "is not the one" in refusal(other)
    more = changed(native, tmp_path / "more")
    (more / "modeling_minicpm.py").touch()
    assert "no other code" in refusal(more)
    asking = changed(native, tmp_path / "asking", auto_map={"AutoConfig": "someone/else--configuration_minicpm.X"})
    assert "no other code" in refusal(asking)
    tokenizer = changed(native, tmp_path / "tokenizer")
    (tokenizer / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["someone/else--evil.T", null]}}')
    assert "tokenizer_config.json asks for code" in refusal(tokenizer)
    with pytest.raises((EngineFailed, MissingDependency)):
        RUNTIME.open(tokenizer)


@pytest.mark.parametrize(
    ("choose", "reason"),
    [
        (linears(AffineGroups(bits=8, group_size=64)), r"q_proj.weight \+ k_proj \+ v_proj is int8 g64 sym; .* 4 bits"),
        (
            lambda slot: SPEC if slot.role in (Role.Q, Role.EMBED) else None,
            "embed_tokens.weight is int4 g64 sym; .* dense",
        ),
        (
            lambda slot: SPEC if slot.role in (Role.Q, Role.K) else None,
            "layers.0.self_attn.v_proj.weight is dense and .*q_proj.weight int4",
        ),
        (
            lambda slot: SPEC if slot.role in (Role.Q, Role.K, Role.V, Role.UP) else None,
            "layers.0.mlp.up_proj.weight is int4 .* and .*gate_proj.weight dense",
        ),
    ],
)
def test_what_its_kernels_cannot_take_is_refused_before_it_starts(tmp_path, choose, reason):
    folder = published(quantized_model(tiny_config(), choose), tmp_path / "model")
    assert re.search(reason, refusal(folder)), refusal(folder)


def test_shapes_and_layouts_of_its_kernels_are_known(native):
    checkpoint = registry.open_checkpoint(native)
    down = checkpoint.weights["model.layers.0.mlp.down_proj.weight"]
    odd = replace(checkpoint, weights={**checkpoint.weights, down.name: replace(down, shape=(256, 528))})
    assert "256 x 528" in (RUNTIME.refuses(odd) or "")
    free = replace(down, scheme=replace(SPEC, symmetric=False))
    asymmetric = replace(checkpoint, weights={**checkpoint.weights, down.name: free})
    assert RUNTIME.refuses(asymmetric) is None
    assert "without zero points" in (RUNTIME.refuses(replace(asymmetric, format="gptq")) or "")


def test_without_vllm_it_says_how_to_get_it(native, monkeypatch):
    monkeypatch.setattr(vllm, "interpreter", lambda: None)
    with pytest.raises(MissingDependency) as caught:
        RUNTIME.open(native)
    assert "make conformance" in str(caught.value.hint)


@pytest.mark.slow
@pytest.mark.engine("vllm")
def test_the_real_engine_agrees_with_the_reference_as_well_as_on_float16_weights(native, tmp_path, capfd):
    dense = published(registry.open_checkpoint(native), tmp_path / "dense", name="hf", type="f16")
    differences = []
    for folder in (dense, native):
        expected = ReferenceSession(registry.open_checkpoint(folder)).logits(TOKENS)
        with RUNTIME.open_in(folder, "float16") as session:
            logits = session.logits(TOKENS)
            following = session.next_logits(TOKENS[:9])
        differences.append(max_abs_log_prob_difference(expected, logits))
        assert top1_agreement(expected, logits) == 1
        assert max_abs_log_prob_difference(logits[8:9], following[None]) <= differences[-1]
    assert 0 < differences[1] <= 2 * differences[0]
    assert differences[0] < 1e-2
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.engine("vllm")
def test_what_the_real_engine_refuses_is_one_line(native):
    spec = replace(registry.open_checkpoint(native).spec, max_position_embeddings=2048)
    command = ["env", *(f"{name}={value}" for name, value in vllm.SETTINGS.items()), str(vllm.interpreter())]
    with pytest.raises(EngineFailed, match=r"native: vLLM: .*max_model_len") as caught:
        VLLMSession(
            native,
            spec,
            command=[*command, "-I", str(vllm.SERVER)],
            dtype="float16",
            staged=partial(staged_folder, registry.open_checkpoint(native)),
        )
    assert "\n" not in str(caught.value)
