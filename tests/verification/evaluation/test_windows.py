"""The text that is predicted: which tokens, and whose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quantkit import registry
from quantkit.errors import BadOption
from quantkit.text.tokenizer import open_tokenizer
from quantkit.verification.evaluation.windows import WindowOptions, read_windows

TEXT = Path(__file__).resolve().parents[3] / "golden" / "text.txt"


def test_windows_are_the_text_in_order_each_behind_a_bos(golden_model: Path) -> None:
    source = registry.open_checkpoint(golden_model)
    whole = open_tokenizer(source).encode(TEXT.read_text(encoding="utf-8"), add_bos=False)
    windows = read_windows(source, TEXT, WindowOptions(sequences=1000, length=64))
    assert {ids[0] for ids in windows.token_ids} == {source.spec.bos_token_id}
    assert {len(ids) for ids in windows.token_ids} == {64}
    read = [token for ids in windows.token_ids for token in ids[1:]]
    assert read == whole[: len(read)]
    assert len(whole) - len(read) < 63, "no more than a rest is left out"
    assert (windows.tokens, windows.longest) == (64 * len(windows.token_ids), 64)


def test_fewer_windows_are_spread_over_the_text(golden_model: Path) -> None:
    source = registry.open_checkpoint(golden_model)
    every = read_windows(source, TEXT, WindowOptions(sequences=1000, length=64)).token_ids
    taken = read_windows(source, TEXT, WindowOptions(sequences=4, length=64)).token_ids
    places = [every.index(ids) for ids in taken]
    assert places == sorted(places)
    assert len(set(places)) == 4
    assert places[-1] >= 0.7 * len(every)


def test_a_record_too_short_to_count_is_left_out(tmp_path: Path, golden_model: Path) -> None:
    records = tmp_path / "records.jsonl"
    words = "import json\n" * 30
    records.write_text("".join(json.dumps({"text": text}) + "\n" for text in (words, "x", words)), encoding="utf-8")
    source = registry.open_checkpoint(golden_model)
    options = WindowOptions(length=16, sequences=100, skip_positions=4)
    assert min(map(len, read_windows(source, records, options).token_ids)) >= 6


def test_a_text_shorter_than_a_window_is_refused_by_its_tokens(golden_model: Path) -> None:
    source = registry.open_checkpoint(golden_model)
    with pytest.raises(BadOption, match=r"text\.txt: \d+ tokens of text do not fill one window of 100000"):
        read_windows(source, TEXT, WindowOptions(length=100_000))


def test_an_empty_text_is_refused(tmp_path: Path, golden_model: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n", encoding="utf-8")
    with pytest.raises(BadOption, match="0 tokens of text do not fill"):
        read_windows(registry.open_checkpoint(golden_model), empty, WindowOptions())


def test_a_source_without_a_tokenizer_is_refused(tiny_checkpoint: Path) -> None:
    with pytest.raises(BadOption, match="so no text can be read"):
        read_windows(registry.open_checkpoint(tiny_checkpoint), TEXT, WindowOptions())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sequences": 0}, "sequences must be from 1"),
        ({"length": 1}, "length must be from 2"),
        ({"skip_positions": -1}, "skip_positions must be from 0"),
        ({"length": 8, "skip_positions": 7}, "windows of 8 tokens have 7 predictions, and 7 are to be skipped"),
    ],
)
def test_counts_that_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadOption, match=message):
        WindowOptions(**settings)
