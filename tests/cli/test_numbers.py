"""Numbers on the command line that no machine can follow are refused at once, with both numbers."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from quantkit.cli.app import main

HUGE = "99999999999999"
QUANTIZE = {
    ("--samples", HUGE): "from 1 to 4,294,967,296, is 99,999,999,999,999",
    ("--samples", "4000000000"): "GB of memory; this machine has",
    ("--samples", "20000000"): "20,000,000 sequences, 10,240,000,000 tokens, needs about",
    ("--length", HUGE): "from 2 to 16,777,216, is 99,999,999,999,999",
    ("--length", "2000"): "calibration sequences of 2,000 tokens exceed the model's context of 1,024",
    ("--group-size", HUGE): "from 1 to 16,777,216, or -1 for one group per row, is 99999999999999",
    ("--group-size", "100"): "256 columns are not a multiple of group_size 100",
    ("--threads", HUGE): "from 1 to 1,024, is 99,999,999,999,999",
    ("--seed", HUGE * 3): "from 0 to 9,223,372,036,854,775,807, is",
    ("--skip-positions", HUGE): "from 0 to 16,777,216, is 99,999,999,999,999",
    ("--samples", "9" * 5000): "--samples",
    ("--bits", "9" * 4000): "--bits",
    ("--seed", "9" * 4000): "from 0 to 9,223,372,036,854,775,807, is",
}
RUN = {
    ("--max-tokens", HUGE): "from 1 to 2,147,483,648, is 99,999,999,999,999",
    ("--seed", "-1"): "from 0 to 9,223,372,036,854,775,807, is -1",
    ("--seed", HUGE * 3): "from 0 to 9,223,372,036,854,775,807, is",
    ("--temperature", "nan"): "--temperature",
    ("--temperature", "inf"): "temperature must be finite",
    ("--top-p", "nan"): "--top-p",
}


@pytest.mark.parametrize(("option", "value"), QUANTIZE)
def test_quantize_refuses_a_number_at_once(
    option: str, value: str, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = time.process_time()
    code = main(["quantize", str(tiny_checkpoint), "--out", str(tmp_path / "out"), option, value])
    assert time.process_time() - start < 10
    error = capsys.readouterr().err
    assert code == 2
    assert QUANTIZE[option, value] in error
    assert "internal error" not in error
    assert len(error) < 700
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("option", "value"), RUN)
def test_run_refuses_a_number_at_once(
    option: str, value: str, golden_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(golden_model), "--prompt", "x", option, value]) == 2
    assert RUN[option, value] in capsys.readouterr().err


@pytest.mark.parametrize(("option", "value"), [("--length", HUGE), ("--samples", HUGE), ("--group-size", HUGE)])
def test_plan_refuses_them_as_well(option: str, value: str, tiny_checkpoint: Path) -> None:
    assert main(["plan", str(tiny_checkpoint), "--to", "gguf", "--method", "gptq", option, value]) == 2
