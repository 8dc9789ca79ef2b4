"""`measure_importance` and `quantkit imatrix`: the whole way, and against llama-imatrix where it is here."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest

import quantkit
from quantkit.cli.app import main
from quantkit.errors import BadOption, OutputExists, QuantkitError
from quantkit.exporters.gguf.container.file import read_gguf
from quantkit.exporters.gguf.imatrix.reading import read_importance
from tests.support.tiny import write_tiny_checkpoint

IMATRIX = shutil.which("llama-imatrix")
IN_FLOAT32 = quantkit.Compute(bfloat16=False)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "prose.txt"
    path.write_text("".join(f"The {n} of them, said def f(x): return {n}.\n" for n in range(120)))
    return path


def test_every_matrix_of_the_blocks_is_told_of(golden_model: Path, text: Path, tmp_path: Path) -> None:
    told: list[str] = []
    done = quantkit.measure_importance(
        golden_model,
        text,
        tmp_path / "i.gguf",
        length=64,
        chunks=3,
        compute=IN_FLOAT32,
        progress=lambda what, *_: told.append(what),
    )
    fields = {name: field.contents() for name, field in gguf.GGUFReader(done.path).fields.items()}
    assert fields["imatrix.datasets"] == ["prose.txt"]
    assert (fields["imatrix.chunk_count"], fields["imatrix.chunk_size"]) == (3, 64)
    kinds = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    found = read_importance(done.path)
    assert found.weights.keys() == {f"blk.{layer}.{kind}.weight" for layer in range(5) for kind in kinds}
    assert np.array_equal(found.weights["blk.2.attn_q.weight"], found.weights["blk.2.attn_v.weight"])
    assert all(0 < values.min() < values.max() / 3 for values in found.weights.values())
    assert told[:2] == ["block 1 of 5", "block 2 of 5"]
    assert done.manifest["options"] == {
        "text": "prose.txt",
        "chunks": 3,
        "chunk_length": 64,
        "process_output": False,
        "device": "cpu",
        "bfloat16": False,
    }
    assert [entry["name"] for entry in done.manifest["source"]][-1] == "prose.txt"


def test_the_head_is_told_of_where_it_is_wanted(untuned_model: Path, text: Path, tmp_path: Path) -> None:
    done = quantkit.measure_importance(
        untuned_model, text, tmp_path / "i.gguf", length=64, chunks=2, process_output=True, compute=IN_FLOAT32
    )
    assert read_importance(done.path).weights["output.weight"].shape == (256,)


def test_what_cannot_be_measured_is_refused_before_any_work(golden_model: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "i.gguf"
    bare = write_tiny_checkpoint(tmp_path / "bare")
    cases: list[tuple[dict[str, object], type[QuantkitError], str]] = [
        ({"length": 1025}, BadOption, "context of 1024"),
        ({"length": 1}, BadOption, "at least two tokens"),
        ({"chunks": 0}, BadOption, "at least one chunk"),
        ({"process_output": True}, BadOption, "is its embedding"),
        ({"model": bare}, BadOption, "no tokenizer"),
        ({"out": text, "overwrite": True}, OutputExists, "is, or holds, the input"),
        ({"compute": quantkit.Compute(device="tpu")}, BadOption, "no device 'tpu'"),
    ]
    for changes, cause, message in cases:
        arguments = {"model": golden_model, "text": text, "out": out, "length": 64, **changes}
        with pytest.raises(cause, match=message):
            quantkit.measure_importance(**arguments)  # type: ignore[arg-type]
    assert not out.exists()
    assert text.read_text().startswith("The 0 of them")


def test_both_verbs(golden_model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, out = tmp_path / "i.gguf", tmp_path / "m.gguf"
    arguments = ["--text", str(text), "--length", "64", "--chunks", "2", "--no-bfloat16", "--threads", "1", "--json"]
    assert main(["imatrix", str(golden_model), *arguments, "--out", str(made)]) == 0
    assert json.loads(capsys.readouterr().out)["matrices"] == 35
    assert main(["export", "gguf", str(golden_model), "--type", "q2_k", "--imatrix", str(made), "--out", str(out)]) == 0
    assert "no weights for token_embd.weight: quantized without" in capsys.readouterr().err
    assert main(["export", "gguf", str(golden_model), "--type", "f16", "--imatrix", str(made), "-o", f"{out}2"]) == 2
    assert "f16 quantizes none" in capsys.readouterr().err
    assert main(["inspect", str(made)]) == 2
    assert "an importance matrix of llama.cpp" in capsys.readouterr().err


@pytest.mark.skipif(IMATRIX is None, reason="llama-imatrix is not on the path; benchmarks/gguf_files.py builds it")
def test_llama_imatrix_measures_the_same(untuned_model: Path, text: Path, tmp_path: Path) -> None:
    plain, ours, theirs = (tmp_path / name for name in ("plain.gguf", "ours.gguf", "theirs.gguf"))
    quantkit.export("gguf", untuned_model, plain, quantkit.ExportOptions(type="f32"))
    quantkit.measure_importance(untuned_model, text, ours, length=128, process_output=True, compute=IN_FLOAT32)
    command = [str(IMATRIX), "-m", plain, "-f", text, "-o", theirs, "-c", "128", "-t", "1", "--no-ppl"]
    exact = ["--process-output", "-ctk", "f32", "-ctv", "f32", "-fa", "off"]
    subprocess.run([*command, *exact], check=True, capture_output=True)
    layouts = []
    for path in (ours, theirs):
        file = read_gguf(path)
        tensors = [(name, info.shape, info.type) for name, info in file.tensors.items()]
        layouts.append(([*file.kinds.items()], file.metadata["general.type"], tensors))
    assert layouts[0] == layouts[1]
    one, other = read_importance(ours), read_importance(theirs)
    assert one.chunks == other.chunks
    assert one.weights.keys() == other.weights.keys()
    for name, values in one.weights.items():
        assert np.allclose(values, other.weights[name], rtol=1e-3, atol=0), name
