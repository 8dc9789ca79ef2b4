"""`run --chat`, and what a chat template that fails does to the other commands: nothing."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from quantkit.cli.app import main
from tests.support.chat_templates import TOOLS
from tests.support.tiny import write_tiny_checkpoint
from tests.support.tokenizer_folders import config_with, golden_files, written

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% if enable_thinking is defined %}[{{ enable_thinking }} {{ enable_thinking is boolean }}]{% endif %}{{ x }}"
)
WANTS_SYSTEM = (
    "{% if messages[0].role != 'system' %}{{ raise_exception('a system turn comes first') }}{% endif %}" + TEMPLATE
)
TODAY = "{{ strftime_now('%Y-%m-%d') }}"
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


def model(folder: Path, template: Any) -> Path:
    write_tiny_checkpoint(folder, hidden=64, intermediate=96, vocab=2048, context=512, layers=1)
    written(config_with(golden_files(), chat_template=template), folder)
    return folder


def named(**templates: str) -> list[dict[str, str]]:
    return [{"name": name, "template": text} for name, text in templates.items()]


def run(folder: Path, *options: str) -> int:
    command = ["run", str(folder), "--prompt", "hi", "--max-tokens", "1", "--engine", "reference", "--json"]
    return main([*command, *options])


SHAPED: dict[str, tuple[Any, tuple[str, ...], str]] = {
    # chat template, options, the prompt
    "plain": (TEMPLATE, (), "<user>hi"),
    "a system turn": (WANTS_SYSTEM, ("--system", "Be brief."), "<system>Be brief.<user>hi"),
    "tools": (TEMPLATE, ("--tools", "TOOLS"), "<user>hi" + json.dumps(TOOLS, ensure_ascii=False)),
    "a truth": (TEMPLATE, ("--template-option", "enable_thinking=false"), "<user>hi[False True]"),
    "a text": (TEMPLATE, ("--template-option", "enable_thinking=no"), "<user>hi[no False]"),
    "two variables": (
        TEMPLATE,
        ("--template-option", "enable_thinking=true", "--template-option", "x=a=b"),
        "<user>hi[True True]a=b",
    ),
    "a named template": (named(default=TEMPLATE, short="{{ messages[0].content }}!"), ("--template", "short"), "hi!"),
    "the template for tools": (named(default=TEMPLATE, tool_use="T{{ tools | length }}"), ("--tools", "TOOLS"), "T1"),
    "the default all the same": (
        named(default="D", tool_use="T"),
        ("--tools", "TOOLS", "--template", "default"),
        "D",
    ),
    "no default": (named(chat="C", rag="R"), ("--template", "rag"), "R"),
}


@pytest.mark.parametrize("case", SHAPED)
def test_a_chat_is_shaped_by_options(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    template, options, prompt = SHAPED[case]
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps(TOOLS))
    words = [str(tools) if word == "TOOLS" else word for word in options]
    assert run(model(tmp_path / "m", template), "--chat", *words) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == prompt


def test_the_clock_shows_today(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = datetime.now()
    assert run(model(tmp_path / "m", TODAY), "--chat") == 0
    assert json.loads(capsys.readouterr().out)["prompt"] in (f"{before:%Y-%m-%d}", f"{datetime.now():%Y-%m-%d}")


REFUSED: dict[str, tuple[Any, tuple[str, ...], str]] = {
    # chat template, options, words of the error
    "a system turn is wanted": (WANTS_SYSTEM, ("--chat",), "a system turn comes first"),
    "no end": (ENDLESS, ("--chat",), "processor time"),
    "no default": (named(chat="C", rag="R"), ("--chat",), "name one of: chat, rag"),
    "no such name": (TEMPLATE, ("--chat", "--template", "rag"), "no chat template 'rag'"),
    "no chat": (TEMPLATE, ("--system", "x"), "add --chat"),
    "no value": (TEMPLATE, ("--chat", "--template-option", "enable_thinking"), "is not NAME=VALUE"),
    "a name that is taken": (TEMPLATE, ("--chat", "--template-option", "messages=[]"), "'messages'"),
    "no tools": (TEMPLATE, ("--chat", "--tools", "nowhere.json"), "nowhere.json cannot be read"),
    "tools that are no list": (TEMPLATE, ("--chat", "--tools", "FILE"), "must hold a list of functions"),
    "no template at all": (None, ("--chat",), "no chat template"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_said_in_one_line(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    template, options, words = REFUSED[case]
    (tmp_path / "tools.json").write_text("[1]")
    given = [str(tmp_path / "tools.json") if word == "FILE" else word for word in options]
    assert run(model(tmp_path / "m", template), *given) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert words in errors[0]


FAILING = {"wants a system turn": WANTS_SYSTEM, "has no end": ENDLESS, "is no template": "{% for", "is empty": "{# #}"}
OTHERS = {
    "plan": "plan MODEL --to gguf:f16,hf --json",
    "export": "export gguf MODEL --type f16 --out OUT --json",
    "quantize": "quantize MODEL --group-size 32 --samples 2 --length 24 --no-fisher --out OUT --json",
    "golden": "golden MODEL --out OUT --json",
    "verify": "verify COPY --against MODEL --engine reference --json",
    "run": "run MODEL --prompt hi --max-tokens 1 --engine reference --json",
}


@pytest.mark.parametrize("verb", OTHERS)
@pytest.mark.parametrize("case", FAILING)
def test_a_template_that_fails_stops_only_what_needs_it(
    case: str, verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {name: str(tmp_path / name.lower()) for name in ("MODEL", "OUT", "COPY")}
    model(Path(places["MODEL"]), FAILING[case])
    if verb == "verify":
        assert main(["export", "hf", places["MODEL"], "--arch", "llama", "--out", places["COPY"]]) == 0
        capsys.readouterr()
    assert main([places.get(word, word) for word in OTHERS[verb].split()]) == 0, capsys.readouterr().err
    told = [line for line in capsys.readouterr().err.splitlines() if "chat template" in line and "plain text" in line]
    assert len(told) == (verb == "golden" or (verb == "quantize" and case != "is empty"))


def test_golden_prompts_do_not_depend_on_the_day(tmp_path: Path) -> None:
    from quantkit import read_golden  # noqa: PLC0415 - torch

    folder = model(tmp_path / "m", TODAY)
    assert main(["golden", str(folder), "--out", str(tmp_path / "golden.bin")]) == 0
    chat = next(prompt for prompt in read_golden(tmp_path / "golden.bin").prompts if prompt.name == "chat")
    assert chat.text == "2026-01-01"
