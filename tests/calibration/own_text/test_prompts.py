"""What the model's own calibration text begins with."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from quantkit.calibration.own_text.prompts import Opening, bundled_openings, plain_text, prompts_digest, read_prompts
from quantkit.text.tokenizer import Tokenizer, open_tokenizer
from tests.support.memory import memory_checkpoint, tiny_config

KINDS = ("prose", "chinese", "dialogue", "code", "mathematics", "tools", "lists")
CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
WITH_TOOLS = "{% if tools %}# Tools\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif %}" + CHAT
REFUSING_TOOLS = "{% if tools %}{{ raise_exception('no tools here') }}{% endif %}" + CHAT
REFUSING_ALL = "{{ raise_exception('no chats here') }}"

WithTemplate = Callable[[object], Tokenizer]


@pytest.fixture
def with_template(golden_model: Path) -> WithTemplate:
    """The golden model's tokenizer with another chat template, or with none."""

    def opened(template: object) -> Tokenizer:
        files = {path.name: path.read_bytes() for path in golden_model.glob("*token*")}
        settings = json.loads(files["tokenizer_config.json"]) | {"chat_template": template}
        files["tokenizer_config.json"] = json.dumps(settings).encode()
        return open_tokenizer(memory_checkpoint(tiny_config(vocab_size=2048), files=files))

    return opened


def of_kind(kind: str) -> list[Opening]:
    return [opening for opening in bundled_openings() if opening.kind == kind]


def test_every_kind_has_at_least_a_dozen_openings_and_all_differ():
    openings = bundled_openings()
    counts = Counter(opening.kind for opening in openings)
    assert tuple(counts) == KINDS
    assert min(counts.values()) >= 12
    assert len(set(openings)) == len(openings)
    assert all(part.strip() for opening in openings for part in opening.parts)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_what_the_kind_has(kind: str):
    for opening in of_kind(kind):
        if kind == "dialogue":
            assert len(opening.parts) % 2 == 1, "the user speaks first and last"
        elif kind == "tools":
            tool, question = opening.parts
            described = json.loads(tool)
            assert set(described) == {"name", "description", "parameters"}
            assert set(described["parameters"]["required"]) <= set(described["parameters"]["properties"])
            assert described["name"] not in question
        else:
            assert len(opening.parts) == 1


def test_several_turns_and_both_languages_occur():
    assert sum(len(opening.parts) > 1 for opening in of_kind("dialogue")) >= 4
    for kind in ("dialogue", "mathematics", "tools"):
        chinese = [any("\u4e00" <= letter <= "\u9fff" for letter in opening.parts[-1]) for opening in of_kind(kind)]
        assert 4 <= sum(chinese) <= len(chinese) - 4
    assert all(any("\u4e00" <= letter <= "\u9fff" for letter in opening.parts[0]) for opening in of_kind("chinese"))


def test_openings_are_read_with_what_texts_begin_with(tokenizer: Tokenizer):
    prompts = read_prompts(tokenizer)
    assert prompts.note is None
    assert tuple(prompts.of_kind) == KINDS
    for kind in ("prose", "chinese", "code", "mathematics", "lists"):
        assert list(prompts.of_kind[kind]) == [tokenizer.encode(opening.parts[0]) for opening in of_kind(kind)]


def test_dialogues_are_written_by_the_chat_template(tokenizer: Tokenizer):
    opening, ids = of_kind("dialogue")[3], read_prompts(tokenizer).of_kind["dialogue"][3]
    first, answer, last = opening.parts
    assert tokenizer.decode(ids) == (
        f"<s><|im_start|>user\n{first}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
        f"<|im_start|>user\n{last}<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_template_that_takes_tools_is_given_each_call_its_own(with_template: WithTemplate):
    tokenizer = with_template(WITH_TOOLS)
    prompts = read_prompts(tokenizer)
    assert prompts.note is None
    for opening, ids in zip(of_kind("tools"), prompts.of_kind["tools"], strict=True):
        tool, question = opening.parts
        text = tokenizer.decode(ids).removeprefix("<s>")
        head, _, rest = text.removeprefix("# Tools\n").partition("\n")
        assert json.loads(head) == {"type": "function", "function": json.loads(tool)}
        assert rest == f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    assert "# Tools" not in tokenizer.decode(prompts.of_kind["dialogue"][0])


def test_a_template_that_leaves_tools_out_gets_them_as_plain_text(tokenizer: Tokenizer):
    prompts = read_prompts(tokenizer)
    for opening, ids in zip(of_kind("tools"), prompts.of_kind["tools"], strict=True):
        tool, question = opening.parts
        assert tokenizer.decode(ids) == f'<s>Tools: [{tool}]\nUser: {question}\nCall: {{"name": "'


def test_without_a_template_all_is_plain_text(with_template: WithTemplate):
    tokenizer = with_template(None)
    prompts = read_prompts(tokenizer)
    assert prompts.note is None
    for kind in KINDS:
        assert list(prompts.of_kind[kind]) == [tokenizer.encode(plain_text(opening)) for opening in of_kind(kind)]
    first, answer, last = of_kind("dialogue")[3].parts
    written = tokenizer.decode(prompts.of_kind["dialogue"][3])
    assert written == f"<s>User: {first}\nAssistant: {answer}\nUser: {last}\nAssistant:"


@pytest.mark.parametrize(("template", "refused"), [(REFUSING_TOOLS, ["tools"]), (REFUSING_ALL, ["dialogue", "tools"])])
def test_what_a_template_refuses_is_plain_text_and_told(with_template: WithTemplate, template: str, refused: list[str]):
    tokenizer = with_template(template)
    prompts = read_prompts(tokenizer)
    assert prompts.note is not None
    for kind in ("dialogue", "tools"):
        assert (f"the kind {kind} begins with plain text" in prompts.note) == (kind in refused)
        plain = [tokenizer.encode(plain_text(opening)) for opening in of_kind(kind)]
        assert (list(prompts.of_kind[kind]) == plain) == (kind in refused)


def test_the_digest_is_that_of_the_file():
    assert len(prompts_digest()) == 64
    assert prompts_digest() == prompts_digest()
