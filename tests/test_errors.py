"""What every message is, whatever a stranger's file puts into it: one line of printable characters, not too long."""

from __future__ import annotations

import pytest

from quantkit.errors import MAX_MESSAGE, MalformedFile, QuantkitError, about, one_line


@pytest.mark.parametrize(
    "stranger",
    [
        "\x1b[2J\x1b]0;title\x07",
        "line\nline\r\nline\u2028line\x0b",
        "\x9b31m\x90\x85",
        "\u202eright to left\u2066\u200b\ufeff",
        "\ud800\udc00 halves",
        "\0" * 5000,
        "\U000e0041" * 200,
        "a" * 100_000,
    ],
)
def test_a_message_is_one_line_of_printable_characters(stranger: str) -> None:
    for error in (MalformedFile(f"file: {stranger!s}", hint=stranger), QuantkitError(stranger)):
        for text in (str(error), error.hint or ""):
            assert text.isprintable()
            assert len(text) <= MAX_MESSAGE
            text.encode()


def test_a_long_message_keeps_its_start_and_its_end() -> None:
    message = str(MalformedFile(f"/models/x: key {'k' * 9000!r} is listed twice"))
    assert message.startswith("/models/x: key 'kkk")
    assert message.endswith("kkk' is listed twice")
    assert " ... " in message


def test_a_message_is_cut_once_however_often_it_is_wrapped() -> None:
    with pytest.raises(MalformedFile) as caught, about("a.json"), about("b.json"), about("x" * 600):
        raise MalformedFile("k" * 600 + " is bad")
    assert str(caught.value).startswith("a.json: b.json: xxx")
    assert str(caught.value).endswith("is bad")
    assert len(str(caught.value)) <= MAX_MESSAGE


@pytest.mark.parametrize("length", [MAX_MESSAGE - 1, MAX_MESSAGE, MAX_MESSAGE + 1, 2 * MAX_MESSAGE])
def test_the_limit_is_exact(length: int) -> None:
    text = one_line("x" * length)
    assert (text == "x" * length) == (length <= MAX_MESSAGE)
    assert len(text) <= MAX_MESSAGE
