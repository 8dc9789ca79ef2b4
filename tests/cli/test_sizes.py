"""Sizes as users type them, and the option that takes one."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from quantkit.cli.app import app
from quantkit.cli.options.sizes import byte_count
from quantkit.errors import BadOption

SIZES = {
    "1": 1, "300MB": 300_000_000, "300M": 300_000_000, "300 mb": 300_000_000, "2G": 2 * 10**9, "1.5GB": 1_500_000_000,
    "4GiB": 4 << 30, "512MiB": 512 << 20, "10k": 10_000, "7B": 7, "0.5K": 500,
}  # fmt: skip


@pytest.mark.parametrize("text", SIZES)
def test_a_size_is_bytes(text: str) -> None:
    assert byte_count(text, "--size") == SIZES[text]


@pytest.mark.parametrize("text", ["", "0", "0.2", "-1", "MB", "1TB", "1e9", "1,5G", "9" * 20, "1 0", "१"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(BadOption, match=r"--size .* is no size") as refusal:
        byte_count(text, "--size")
    assert "300MB" in str(refusal.value.hint)


def test_parts_are_a_folder_and_not_called_like_a_file(golden_model: Path, tmp_path: Path) -> None:
    words = ["export", "gguf", str(golden_model), "--type", "q8_0", "--split-max-size", "2MB", "--out"]
    refused = CliRunner().invoke(app, [*words, str(tmp_path / "m.gguf")])
    assert isinstance(refused.exception, BadOption)
    assert str(refused.exception.hint) == f"--out {tmp_path / 'm'}"
    done = CliRunner().invoke(app, [*words, str(tmp_path / "m"), "--json"])
    assert done.exit_code == 0
    assert len(list((tmp_path / "m").glob("model-0000?-of-00003.gguf"))) == 3
    assert "give engines model-00001-of-00003.gguf" in done.stdout
