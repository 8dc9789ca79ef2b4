"""The head of a card: what is taken from strangers' ones; YAML and the hub's library read ours as it is meant."""

from __future__ import annotations

import pytest
import yaml

from quantkit.pipeline.card.front_matter import LANGUAGE, LICENSE_ID, fitting, front_matter, read_front_matter

CARD = """---
language:
- zh
- "en"  # both
license: 'apache-2.0'
tags: [minicpm, text-generation]
model-index:
  - name: x
    license: mit
---
# Title
license: mit
"""


def test_keys_at_the_margin_are_read_with_their_values() -> None:
    found = read_front_matter(CARD)
    assert (found["language"], found["license"]) == (("zh", "en"), ("apache-2.0",))
    assert found["tags"] == ("minicpm", "text-generation")


@pytest.mark.parametrize(
    "text", ["", "# Title\n", "---\nlicense: mit\n", "text\n---\nlicense: mit\n---\n", "---", "\n"]
)
def test_a_page_without_a_whole_block_says_nothing(text: str) -> None:
    assert read_front_matter(text) == {}


def test_values_that_are_not_what_they_should_be_are_passed_over() -> None:
    assert fitting(("zh", "zh", "English", "e", "zh-Hans", "<b>"), LANGUAGE) == ("zh", "zh-Hans")
    assert fitting(("apache-2.0", "Apache License 2.0", "mit\n- x", ""), LICENSE_ID) == ("apache-2.0",)


def test_yaml_reads_what_was_written() -> None:
    """Every printable character, alone, before and behind others: more than any value that is written may hold."""
    printable = [chr(code) for code in range(32, 127)]
    words = [f"{before}{character}{behind}" for character in printable for before in ("", "a") for behind in ("", "a ")]
    block = front_matter({"tags": words, "license": '"', "language": []})
    assert yaml.safe_load(block.removeprefix("---\n").removesuffix("---\n")) == {"tags": words, "license": '"'}


@pytest.mark.parametrize("word", ["no", "4-bit", "1.0", "null", "- x", "a: b", "a #b", "2024-01-01", "yes", "", "~"])
def test_words_that_yaml_takes_for_something_else_are_quoted(word: str) -> None:
    block = front_matter({"license": word, "tags": [word]})
    assert yaml.safe_load(block.removeprefix("---\n").removesuffix("---\n")) == {"license": word, "tags": [word]}


@pytest.mark.parametrize(
    "text", ["\0", ":", "-", "- x", "license:", "license: [", "a: 'b", "\u2028x: y", "#", "---\n---"]
)
def test_odd_blocks_are_read_without_an_error(text: str) -> None:
    read_front_matter("---\n" + text + "\n---\n")
