"""`run --attention sparse`: the reference follows sparse_config, other engines refuse with a way out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quantkit import registry
from quantkit.cli.app import main
from quantkit.runtimes.reference.sparse.session import SparseSession
from quantkit.runtimes.reference.sparse.variants import variant_named
from quantkit.text.tokenizer import open_tokenizer
from tests.support.tiny import write_tiny_checkpoint
from tests.support.tokenizer_folders import config_with, golden_files, written

SPARSE = {
    "kernel_size": 4, "kernel_stride": 2, "init_blocks": 0, "block_size": 4, "window_size": 4, "topk": 1,
    "dense_len": -1,
}  # fmt: skip
PROMPT = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sparse") / "model"
    config = {"sparse_config": SPARSE}
    write_tiny_checkpoint(out, hidden=64, intermediate=96, vocab=2048, context=512, tie=False, config_overrides=config)
    written(config_with(golden_files()), out)
    return out


def run(folder: Path, *options: str) -> int:
    return main(["run", str(folder), "--prompt", PROMPT, "--max-tokens", "6", "--json", *options])


def tokens(capsys: pytest.CaptureFixture[str]) -> list[int]:
    found: list[int] = json.loads(capsys.readouterr().out)["token_ids"]
    return found


@pytest.mark.parametrize("variant", ["minicpm4.1", "minicpm4"])
def test_the_reference_follows_sparse_config(variant: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "--attention", "sparse", "--variant", variant) == 0
    found = tokens(capsys)
    assert run(folder, "--engine", "reference", "--attention", "dense") == 0
    assert tokens(capsys) != found
    checkpoint = registry.open_checkpoint(folder)
    session = SparseSession(checkpoint, variant_named(variant))
    ids = open_tokenizer(checkpoint).encode(PROMPT)
    for token in found:
        assert int(np.argmax(session.next_logits(ids))) == token
        ids.append(token)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--attention", "sparse", "--engine", "transformers"), "transformers attends densely to hf"),
        (("--variant", "cpm.cu", "--engine", "vllm"), "vllm attends densely to hf"),
        (("--attention", "sparse", "--variant", "flash"), "no variant 'flash'"),
        (("--attention", "linear"), "no attention 'linear'"),
        (("--attention", "dense", "--variant", "cpm.cu"), "variants are of sparse attention"),
    ],
)
def test_what_cannot_be_is_refused(
    options: tuple[str, ...], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, *options) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "hint:" in error


def test_a_model_without_sparse_config_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny_checkpoint(tmp_path / "model", hidden=64, intermediate=96, vocab=2048, context=512, layers=1)
    written(config_with(golden_files()), tmp_path / "model")
    assert run(tmp_path / "model", "--attention", "sparse") == 2
    assert "no sparse_config" in capsys.readouterr().err


def test_a_container_that_attends_sparsely_needs_no_option(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(folder, "--attention", "sparse") == 0
    sparse = tokens(capsys)
    opened = registry.open_checkpoint
    monkeypatch.setattr(registry, "open_checkpoint", lambda path: replace(opened(path), attention="sparse"))
    assert run(folder, "--engine", "reference") == 0
    assert tokens(capsys) == sparse
    assert run(folder, "--engine", "reference", "--attention", "dense") == 2
    assert "attends sparsely by itself" in capsys.readouterr().err
