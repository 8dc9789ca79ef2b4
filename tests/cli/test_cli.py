"""The command line: exit codes, one-line errors, nothing left behind, JSON on demand."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from quantkit.cli.app import main
from quantkit.registry import open_checkpoint
from tests.support.malformed import SAFETENSORS_CASES, Case
from tests.support.malformed_folders import FOLDER_CASES, INDEX, Q, edit_json, replace_tensors, write_small_checkpoint
from tests.support.tiny import write_tiny_checkpoint


def one_line(capsys, code, *words, expected=2):
    """The command failed in one printable line on stderr after its notes, with nothing on stdout; returns the line."""
    captured = capsys.readouterr()
    assert code == expected
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: ")
    assert lines[0].isprintable()
    assert "internal error" not in lines[0]
    assert "Traceback" not in captured.err
    for word in words:
        assert word in lines[0], f"{word!r} is not in {lines[0]!r}"
    return lines[0]


@pytest.fixture
def model(tmp_path):
    return write_tiny_checkpoint(tmp_path / "model")


@pytest.mark.parametrize("case", FOLDER_CASES, ids=lambda case: case.name)
def test_a_bad_folder_gives_one_line_and_no_output(case: Case, tmp_path, capsys):
    folder = write_small_checkpoint(tmp_path / "model")
    case.build(folder)
    out = tmp_path / "out.gguf"
    one_line(capsys, main(["export", "gguf", str(folder), "--type", "f32", "--out", str(out)]))
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []


@pytest.mark.parametrize("case", SAFETENSORS_CASES, ids=lambda case: case.name)
def test_a_bad_safetensors_file_gives_one_line_and_no_output(case: Case, tmp_path, capsys):
    folder = write_small_checkpoint(tmp_path / "model")
    for shard in folder.glob("*.safetensors*"):
        shard.unlink()
    case.build(folder / "model.safetensors")
    out = tmp_path / "out"
    one_line(capsys, main(["export", "hf", str(folder), "--out", str(out)]))
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []


def set_weight(folder: Path, name: str, value: float) -> None:
    def change(tensors):
        tensors[name] = tensors[name].copy()
        tensors[name][0, 1] = value

    replace_tensors(folder, change)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("verb", ["export", "quantize"])
def test_a_weight_that_is_not_finite_stops_with_its_name(model, tmp_path, capsys, value, verb):
    set_weight(model, Q, value)
    out = tmp_path / "out"
    commands = {
        "export": ["export", "hf", str(model), "--out", str(out)],
        "quantize": ["quantize", str(model), "--method", "rtn", "--out", str(out)],
    }
    one_line(capsys, main(commands[verb]), Q)
    assert not out.exists()


def test_bfloat16_beyond_float16_is_refused_by_name_and_never_clamped(model, tmp_path, capsys):
    set_weight(model, Q, 3e38)
    out = tmp_path / "out.gguf"
    one_line(capsys, main(["export", "gguf", str(model), "--type", "f16", "--out", str(out)]), Q, "65504", "hint")
    assert not out.exists()
    assert main(["export", "gguf", str(model), "--type", "bf16", "--out", str(out)]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], ["nonsense"]),
        (["export"], ["FORMAT"]),
        (["export", "nope", "MODEL", "--out", "OUT"], ["nope", "gguf"]),
        (["export", "gguf", "MODEL"], ["--out"]),
        (["export", "gguf", "MODEL", "--type", "q9", "--out", "OUT"], ["q9", "q4_0"]),
        (["export", "hf", "MODEL", "--arch", "mamba", "--out", "OUT"], ["mamba", "llama"]),
        (["export", "compressed-tensors", "MODEL", "--out", "OUT"], ["hf"]),
        (["inspect", "/nowhere"], ["/nowhere"]),
        (["inspect", "/dev/null"], ["/dev/null"]),
        (["plan", "MODEL", "--to", "gguf:q9"], ["q9"]),
        (["plan", "MODEL", "--method", "magic", "--to", "gguf"], ["magic", "rtn"]),
        (["quantize", "MODEL", "--method", "magic", "--out", "OUT"], ["magic", "rtn"]),
        (["quantize", "MODEL", "--method", "rtn", "--bits", "9", "--out", "OUT"], ["--bits"]),
        (["quantize", "MODEL", "--method", "rtn", "--group-size", "100", "--out", "OUT"], ["256", "100"]),
        (["quantize", "MODEL", "--method", "rtn", "--group-size", "0", "--out", "OUT"], ["group_size"]),
        (["quantize", "MODEL", "--method", "rtn", "--scale-dtype", "int3", "--out", "OUT"], ["int3"]),
        (["quantize", "MODEL", "--device", "tpu", "--out", "OUT"], ["tpu", "cuda"]),
        (["quantize", "MODEL", "--method", "rtn", "--device", "cuda", "--out", "OUT"], ["rtn", "--device"]),
        (["quantize", "MODEL", "--method", "gptq", "--calibration", "/nowhere.txt", "--out", "OUT"], ["tokenizer"]),
        (["verify", "MODEL", "--golden", "/nowhere.bin"], ["/nowhere.bin"]),
        (["verify", "MODEL", "--engine", "warp"], ["warp"]),
        (["verify", "MODEL", "--engine", "llama-cpp"], ["llama-cpp", "hf"]),
        (["run", "MODEL", "--prompt", "x"], ["tokenizer"]),
    ],
    ids=lambda value: " ".join(value)[:60],
)
def test_a_wrong_command_gives_one_line_that_says_what_is_wrong(arguments, words, model, tmp_path, capsys):
    out = tmp_path / "out"
    names = {"MODEL": str(model), "OUT": str(out)}
    one_line(capsys, main([names.get(argument, argument) for argument in arguments]), *words)
    assert not out.exists()


def test_output_that_exists_or_is_the_input_is_refused(model, tmp_path, capsys):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("years of work")
    one_line(capsys, main(["export", "hf", str(model), "--out", str(taken)]), "taken")
    one_line(capsys, main(["export", "hf", str(model), "--out", str(taken), "--overwrite"]), "taken")
    assert (taken / "thesis.txt").read_text() == "years of work"
    one_line(capsys, main(["export", "hf", str(model), "--out", str(model), "--overwrite"]), "model")


def test_an_interrupt_in_the_middle_leaves_nothing_and_exits_with_130(tmp_path):
    model = write_tiny_checkpoint(tmp_path / "model", hidden=1024, intermediate=4096, layers=6, vocab=300)
    out = tmp_path / "out.gguf"
    command = [sys.executable, "-m", "quantkit", "export", "gguf", str(model), "--type", "f32", "--out", str(out)]
    for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        code, stdout, stderr = signalled_in_the_middle(command, tmp_path, kind)
        assert code == 130, stderr
        assert stdout == ""
        assert [line for line in stderr.splitlines() if not line.startswith("note: ")] == [
            "error: interrupted; nothing was published"
        ]
        assert [path.name for path in tmp_path.iterdir()] == ["model"]


def signalled_in_the_middle(command: list[str], folder: Path, kind: signal.Signals) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command that is sent `kind` as soon as it has begun to write in `folder`."""
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and child.poll() is None:
        if any(".quantkit-part" in path.name for path in folder.iterdir()):
            break
        time.sleep(0.001)
    child.send_signal(kind)
    stdout, stderr = child.communicate(timeout=30)
    return child.returncode, stdout, stderr


def test_json_is_one_object_on_stdout_for_every_verb_that_reports(model, tmp_path, capsys):
    quantized, gguf = tmp_path / "int4", tmp_path / "model.gguf"
    commands = [
        ["inspect", str(model), "--json"],
        ["plan", str(model), "--method", "rtn", "--to", "gguf:q4_0,hf", "--json"],
        ["quantize", str(model), "--method", "rtn", "--out", str(quantized), "--json"],
        ["export", "gguf", str(quantized), "--type", "q4_0", "--out", str(gguf), "--json"],
        ["inspect", str(gguf), "--json"],
        ["formats", "--json"],
    ]
    for command in commands:
        assert main(command) == 0
        assert isinstance(json.loads(capsys.readouterr().out), dict), command


def test_a_plan_that_a_container_cannot_hold_says_so_and_exits_with_2(model, capsys):
    code = main(["plan", str(model), "--method", "rtn", "--bits", "4", "--asym", "--to", "gguf:q4_0,gguf:q4_1"])
    captured = capsys.readouterr()
    assert code == 2
    assert "refused" in captured.out
    assert "(hint: " in captured.out


def test_damage_after_publishing_is_found_by_verify(model, tmp_path, capsys):
    gguf = tmp_path / "model.gguf"
    assert main(["export", "gguf", str(model), "--type", "f32", "--out", str(gguf)]) == 0
    capsys.readouterr()
    data = bytearray(gguf.read_bytes())
    data[-100] ^= 1
    gguf.write_bytes(bytes(data))
    assert main(["verify", str(gguf), "--against", str(model), "--engine", "reference"]) == 1
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "FAIL files" in shown.out
    assert "model.gguf" in shown.out


def test_a_wrong_index_entry_is_named(model, capsys):
    edit_json(model / INDEX, lambda index: index["weight_map"].update({Q: "../../x.safetensors"}))
    one_line(capsys, main(["inspect", str(model)]), "../../x.safetensors")


def test_bfloat16_is_what_the_tiny_model_holds(model):
    assert open_checkpoint(model).weights[Q].dtype == np.dtype(ml_dtypes.bfloat16)
