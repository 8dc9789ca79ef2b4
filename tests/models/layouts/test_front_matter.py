"""The head of README.md: what PyYAML reads of the shapes that cards are made of, and nothing of all others."""

from __future__ import annotations

import random

import pytest
import yaml

from quantkit.models.layouts.front_matter import MAX_BYTES, front_matter_bytes, read_front_matter

CARD = """---
# a comment
license: apache-2.0
license_name: 'it''s free' # said so
language:
- en
- zh   # Chinese
tags: [minicpm, "a, b", text-generation]
base_model:
  - openbmb/MiniCPM4-0.5B
description: "two\\nlines \\"quoted\\" \\\\"
pipeline_tag: text-generation
datasets:
- https://huggingface.co/datasets/a/b

model_name: Größe 漢
---
# MiniCPM
license: gpl
"""


def test_a_card_is_read_as_yaml_reads_it() -> None:
    whole = yaml.safe_load(CARD.split("---\n")[1])
    del whole["tags"]  # a comma in quotes: passed over
    assert read_front_matter(CARD.encode()) == whole


def test_texts_stay_texts() -> None:
    card = "---\nversion: 1.0\nname: no\nlanguage: [no, 12]\nkey: 2024-01-01\n---\n"
    assert read_front_matter(card.encode()) == {
        "version": "1.0", "name": "no", "language": ["no", "12"], "key": "2024-01-01",
    }  # fmt: skip


OTHERS = {
    "no head": "# MiniCPM\nlicense: mit\n",
    "no end": "---\nlicense: mit\n",
    "an object": "---\nlicense:\n  name: mit\n---\n",
    "a list of objects": "---\nlicense:\n- name: mit\n- x\n---\n",
    "an object in a line": "---\nlicense: {name: mit}\n---\n",
    "lines": "---\nlicense: |\n  mit\n  or so\n---\n",
    "folded lines": "---\nlicense: >-\n  mit\n---\n",
    "a text that goes on": "---\nlicense: mit\n  or so\n---\n",
    "an alias": "---\nlicense: *x\n---\n",
    "an anchor": "---\nlicense: &x mit\n---\n",
    "a tag": "---\nlicense: !!python/object/apply:os.system [x]\n---\n",
    "a quote without end": '---\nlicense: "mit\n---\n',
    "nothing": "---\nlicense:\n---\n",
    "null": "---\nlicense: null\n---\n",
    "a list in a list": "---\nlicense: [[mit]]\n---\n",
    "a colon inside": "---\nlicense: a: b\n---\n",
    "too late": "---\n" + "x: y\n" * (MAX_BYTES // 5) + "license: mit\n---\n",
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_is_of_another_shape_is_passed_over(case: str) -> None:
    assert "license" not in read_front_matter(OTHERS[case].encode())


def test_the_first_of_two_keys_counts_and_the_next_key_is_read_after_one_that_is_passed_over() -> None:
    card = "---\nmodel-index:\n- name: x\n  results:\n    - task: y\nlicense: mit\nlicense: gpl\n---\n"
    assert read_front_matter(card.encode()) == {"license": "mit"}


def test_bytes_of_any_kind_raise_nothing() -> None:
    rng, data = random.Random(0), CARD.encode()
    for _ in range(2000):
        spoiled = bytearray(data)
        for _ in range(rng.choice((1, 3, 10))):
            spoiled[rng.randrange(len(spoiled))] = (
                rng.choice(b"\0\xff\n:-[]{}'\"# &*!|>\t") if rng.random() < 0.8 else 65
            )
        for value in read_front_matter(bytes(spoiled)).values():
            assert isinstance(value, str) or all(isinstance(item, str) for item in value)


WRITTEN = {
    "license": "apache-2.0", "language": ["en", "no", "zh"], "name": "A: b # c", "description": 'x\n"y" \\ z\t-',
    "version": "1.0", "tags": ["- x", "[y]", "*z", "漢", ""], "base_model": ["openbmb/MiniCPM4-0.5B"],
}  # fmt: skip


def test_a_head_that_was_written_is_read_back_by_both() -> None:
    data = front_matter_bytes(WRITTEN)
    assert read_front_matter(data) == WRITTEN
    assert yaml.safe_load(data.decode().split("---\n")[1]) == WRITTEN
