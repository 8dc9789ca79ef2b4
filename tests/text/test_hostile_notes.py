"""Notes about a stranger's files are lines that a terminal can show, whatever the files say."""

from __future__ import annotations

import pytest

from quantkit.errors import MAX_MESSAGE
from tests.support.tokenizer_folders import config_with, golden_files, opened


@pytest.mark.parametrize(
    "text",
    ["\x1b[2J\x1b]0;title\x07", "\x9b31m", "\u202e\u2066", "a\nnote: b\r\n", "\0", "\U0001f600" * 9999, "k" * 9999],
)
def test_a_note_is_one_line_of_printable_characters(text: str) -> None:
    keys = {text: 1, "clean_up_tokenization_spaces": text, "tokenizer_class": text}
    notes = opened(config_with(golden_files(), **keys)).notes
    assert len(notes) >= 2
    for note in notes:
        assert note.isprintable()
        assert len(note) <= MAX_MESSAGE
