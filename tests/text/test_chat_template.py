"""Chat templates render here as they do in transformers; what they may not do is stopped, and stops nothing else."""

from __future__ import annotations

import json
import random
import resource
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from quantkit.errors import BadOption, MalformedFile, QuantkitError
from quantkit.text import chat_template
from quantkit.text.chat_template import FIXED_NOW, ChatOptions, chat_variables, chosen_template, render
from quantkit.text.tokenizer import open_tokenizer
from tests.support.chat_templates import CHATML, CONVERSATIONS, LAST, SYSTEM, TEMPLATES, TOOLS, USER
from tests.support.processes import descendants, eventually_gone, processor_seconds
from tests.support.tokenizer_folders import config_with, golden_files, opened

ROOT = Path(__file__).resolve().parents[2]
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>"}
NOW = datetime(2026, 3, 14, 15, 9)
DOCUMENTS = [{"title": "sky", "text": "It is 灰."}]
WAYS: dict[str, tuple[dict[str, Any], bool]] = {
    # what apply_chat_template is given beside the messages, and add_generation_prompt
    "plain": ({}, True),
    "without the prompt": ({}, False),
    "tools": ({"tools": TOOLS}, True),
    "no thinking": ({"enable_thinking": False}, True),
    "thinking": ({"enable_thinking": True, "documents": DOCUMENTS, "date_string": "1 May 1900"}, True),
    "another token": ({"bos_token": "<bos>"}, False),
}


def there(template: str, messages: list[dict[str, Any]], given: dict[str, Any], prompt: bool) -> str | None:
    """What transformers renders; None where it raises."""
    import tokenizers  # noqa: PLC0415 - the two take seconds
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0, "</s>": 1}, unk_token="</s>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, **SPECIALS)
    try:
        text: str = tokenizer.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=prompt, tokenize=False, **given
        )
    except Exception:  # whatever the template does
        return None
    return text


def options(given: dict[str, Any]) -> ChatOptions:
    variables = {name: value for name, value in given.items() if name != "tools"}
    return ChatOptions(tools=given.get("tools"), variables=variables, now=NOW)


def variables(messages: list[dict[str, Any]], given: dict[str, Any], prompt: bool) -> dict[str, Any]:
    return chat_variables(messages, options(given), specials=SPECIALS, add_generation_prompt=prompt)


class Clock:
    """transformers' clock, standing still."""

    @staticmethod
    def now() -> datetime:
        return NOW


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_renders_as_in_transformers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)
    cases = [(messages, *way) for messages in CONVERSATIONS.values() for way in WAYS.values()]
    expected = [there(TEMPLATES[name], *case) for case in cases]
    good = [case for case, text in zip(cases, expected, strict=True) if text is not None]
    if good:
        assert render(TEMPLATES[name], [variables(*case) for case in good], now=NOW) == [
            t for t in expected if t is not None
        ]
    bad = [case for case, text in zip(cases, expected, strict=True) if text is None]
    for case in bad[:2]:
        with pytest.raises(MalformedFile, match="the chat template failed"):
            render(TEMPLATES[name], [variables(*case)], now=NOW)


def test_most_of_them_render_something() -> None:
    """The comparison above is not one of failures alone."""
    rendered = [name for name in TEMPLATES if there(TEMPLATES[name], CONVERSATIONS["one turn"], {}, True)]
    assert len(rendered) >= len(TEMPLATES) - 6


NAMED = {"tool_use": "T", "rag": "R"}


@pytest.mark.parametrize(
    ("default", "named", "given", "expected"),
    [
        ("D", {}, {}, "D"),
        ("D", NAMED, {}, "D"),
        ("D", NAMED, {"tools": TOOLS}, "T"),
        ("D", NAMED, {"tools": []}, "T"),
        ("D", {"rag": "R"}, {"tools": TOOLS}, "D"),
        ("D", NAMED, {"template": "rag"}, "R"),
        ("D", NAMED, {"tools": TOOLS, "template": "default"}, "D"),
        (None, NAMED, {"tools": TOOLS}, "T"),
        (None, NAMED, {"template": "rag"}, "R"),
    ],
)
def test_the_template_is_chosen_as_transformers_does(default: Any, named: Any, given: Any, expected: str) -> None:
    import tokenizers  # noqa: PLC0415
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    assert chosen_template(default, named, ChatOptions(**given)) == expected
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0}, unk_token="<s>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model)
    tokenizer.chat_template = {**({"default": default} if default else {}), **named} if named else default
    assert tokenizer.get_chat_template(given.get("template"), given.get("tools")) == expected


@pytest.mark.parametrize(
    ("default", "named", "given", "message"),
    [
        (None, {}, {}, "no chat template"),
        (None, NAMED, {}, "no chat template 'default'"),
        ("D", NAMED, {"template": "agent"}, "no chat template 'agent'"),
        ("D", {}, {"template": "tool_use"}, "no chat template 'tool_use'"),
        (None, {"rag": "R"}, {"tools": TOOLS}, "no chat template 'default'"),
    ],
)
def test_a_template_that_is_not_there_is_named(default: Any, named: Any, given: Any, message: str) -> None:
    with pytest.raises(BadOption, match=message) as failure:
        chosen_template(default, named, ChatOptions(**given))
    assert failure.value.hint is not None


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt", "two words", ""])
def test_a_variable_that_cannot_be_set_is_refused(name: str) -> None:
    with pytest.raises(BadOption, match="no further variable"):
        ChatOptions(variables={name: 1})


def test_the_clock_stands_still_unless_it_is_told() -> None:
    template = "{{ strftime_now('%Y-%m-%d %H:%M') }}"
    assert render(template, [{}]) == [f"{FIXED_NOW:%Y-%m-%d %H:%M}"]
    assert render(template, [{}], now=NOW) == ["2026-03-14 15:09"]
    tokenizer = open_tokenizer(opened(config_with(golden_files(), chat_template=template)))
    assert tokenizer.chat([USER]) == f"{FIXED_NOW:%Y-%m-%d %H:%M}"
    assert tokenizer.chat([USER], options=ChatOptions(now=NOW)) == "2026-03-14 15:09"


def test_a_system_turn_comes_first() -> None:
    tokenizer = open_tokenizer(opened(golden_files()))
    both = tokenizer.chat([LAST], options=ChatOptions(system=str(SYSTEM["content"])))
    assert both == tokenizer.chat([SYSTEM, LAST])


def child_seconds() -> float:
    """Processor time of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


HOSTILE = {
    "two endless loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a long text": "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "a text that doubles": "{% set n = namespace(t='xxxxxxxx') %}"
    "{% for i in range(40) %}{% set n.t = n.t * 2 %}{% endfor %}",
    "a list that grows": "{% set n = namespace(a=[]) %}"
    "{% for i in range(9999) %}{% set n.a = n.a + [n.a] * 99 %}{% endfor %}",
    "a large number": "{% set n = namespace(n=9) %}"
    "{% for i in range(99) %}{% set n.n = n.n * n.n %}{% endfor %}{{ n.n }}",
    "a wide format": "{{ '%999999999d' % 1 }}",
    "a macro without end": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "brackets": "{{" + "(" * 20000,
    "blocks in blocks": "{% if 1 %}" * 5000 + "{% endif %}" * 5000,
    "a sorted product": "{{ (range(9999) | list * 99) | sort | unique | join | length * 'x' * 99999 }}",
    "json of itself": "{% set a = range(99999) | list %}{{ [a, a, a, a, a, a, a, a, a, a] | tojson(indent=9) }}",
    "half a character": "{{ '\\ud800' }}",
    "files": "{% include 'secret' %}",
    "a way out": "{{ self.__init__.__globals__ }}",
    "another way out": "{{ cycler.__init__.__globals__.os.system('true') }}",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_template_is_stopped_in_time(case: str) -> None:
    start = child_seconds()
    with pytest.raises(MalformedFile) as failure:
        render(HOSTILE[case], [variables([USER], {}, True)])
    assert child_seconds() - start < chat_template.MAX_SECONDS + 1  # besides, it has to start
    assert len(str(failure.value)) < 300
    assert "\n" not in str(failure.value)


def mutations(count: int) -> list[str]:
    """Templates with a few characters or pieces changed, moved or taken away."""
    rng = random.Random(0)
    names = list(TEMPLATES)
    made = []
    for _ in range(count):
        text, other = TEMPLATES[rng.choice(names)], TEMPLATES[rng.choice(names)]
        for _ in range(rng.randint(1, 4)):
            at, to = sorted(rng.randrange(len(text) + 1) for _ in range(2))
            start = rng.randrange(len(other))
            piece = rng.choice(["", "{%", "%}", "{{", "}}", "\0", "\ud7ff", "*9**9", other[start : start + 30]])
            text = text[:at] + piece + text[min(to, at + 20) :]
        made.append(text)
    return made


@pytest.mark.parametrize("batch", range(4))
def test_a_changed_template_raises_nothing_but_our_errors(batch: int) -> None:
    for template in mutations(40)[batch::4]:
        try:
            texts = render(template, [variables(CONVERSATIONS["several turns"], {}, True)])
        except QuantkitError:
            continue
        assert len(texts) == 1


def test_many_long_conversations_are_rendered_in_one_go() -> None:
    turn = {"role": "user", "content": "好" * 100_000}
    texts = render(CHATML, [variables([turn] * 4, {}, True)] * 8)
    assert [len(text) for text in texts] == [len(texts[0])] * 8
    assert len(texts[0]) > 400_000


def test_the_renderer_starts_in_no_time() -> None:
    """It takes 0.1 s of processor time, which a busy machine stretches; the best of three."""
    took = []
    for _ in range(3):
        start = child_seconds()
        render(TEMPLATES["qwen"], [variables(CONVERSATIONS["several turns"], {"tools": TOOLS}, True)])
        took.append(child_seconds() - start)
    assert min(took) < 0.3


ENDLESS = """
from quantkit.text import chat_template
chat_template.MAX_SECONDS = 60.0  # so that it is not the limit that ends the child
print("begin", flush=True)
chat_template.render("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", [{}])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_template_ends_with_the_process_that_renders_it(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", ENDLESS], cwd=ROOT, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"begin\n"
        until = time.monotonic() + 20
        while not (rendering := [pid for pid in descendants(parent.pid) if processor_seconds(pid) > 0.3]):
            assert time.monotonic() < until
            time.sleep(0.02)
        children = descendants(parent.pid)
        assert {*rendering} < {*children}
        parent.send_signal(number)
        parent.wait()
    assert all(eventually_gone(pid) for pid in children)


def test_what_a_template_is_told_goes_through_json_unharmed() -> None:
    tricky = {"role": "user", "content": "\0 \u2028 \\u0041 \ud7ff 👩‍👩‍👧 \"'`${}"}
    assert render("{{ messages[0].content }}", [variables([tricky], {}, True)]) == [tricky["content"]]
    assert json.loads(render("{{ messages[0] | tojson }}", [variables([tricky], {}, True)])[0]) == tricky
