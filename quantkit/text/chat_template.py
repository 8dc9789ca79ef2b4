"""Chat templates: the one place that renders them.

A template is a program that comes with a model. Jinja2's immutable sandbox keeps it from Python's internals, but
not from looping for ever or filling the memory, so it runs in a child process that the operating system limits
(`template_renderer.py`) and that ends with this one (`quantkit.supervisor`). It sees what it would see in transformers.
"""

from __future__ import annotations

import importlib.util
import json
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from quantkit.errors import BadOption, MalformedFile, MissingDependency
from quantkit.supervisor import supervised
from quantkit.text.templates import DEFAULT, MAX_TEMPLATE_BYTES

Messages = Sequence[Mapping[str, Any]]
"""A conversation: objects with `role`, `content` and whatever else the template reads (`tool_calls` ...)."""

FIXED_NOW = datetime(2026, 1, 1)  # local time without a zone, as templates print it
"""What the clock shows where a text must be the same on every day."""
TOOL_USE = "tool_use"
"""The named template that transformers takes when there are tools."""
MAX_SECONDS = 1.0
"""Of processor time; a template takes milliseconds. `CONVERSATION_SECONDS` more for each conversation."""
CONVERSATION_SECONDS = 0.02
MAX_MEMORY_BYTES = 256 << 20
MEMORY_PER_BYTE = 24
"""What a byte of the conversations may take beside it: their objects, the text, and the text as JSON."""
MAX_TEXT_CHARS = 4 << 20
TEXT_PER_BYTE = 4
"""Characters that may be written for a byte of the conversations, beside the former."""
WAIT_SECONDS = 30.0
"""How long the parent waits beyond the child's own limit: the machine may be busy."""
_CHILD = (
    "import json, sys; job = json.load(sys.stdin); sys.path[:] = job.pop('path'); "
    "from quantkit.text.template_renderer import render_job; render_job(job)"
)
_ALREADY = ("messages", "tools", "add_generation_prompt")
_SURROGATE = re.compile("[\ud800-\udfff]")
_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names that a message's reasoning goes by; templates read the first, or the second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """What a chat template is given beside the messages.

    system: the text of a system turn that comes first.
    tools: descriptions of functions that the model may call, as JSON schemas.
    template: the name of the template; None = "tool_use" where there are tools and such a template, else the default.
    variables: further ones by name (`enable_thinking`).
    now: what `strftime_now` shows; None = today where text is generated (`generate`), and 1 January 2026 where a text
        must be the same on every day: golden prompts and calibration, which record token ids and are compared later.
    """

    system: str | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    template: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    now: datetime | None = None

    def __post_init__(self) -> None:
        taken = [name for name in self.variables if name in _ALREADY or not name.isidentifier()]
        if taken:
            raise BadOption(f"a chat template gets no further variable {taken[0][:80]!r}", hint="choose another name")


PLAIN_CHAT = ChatOptions()


def chosen_template(default: str | None, named: Mapping[str, str], options: ChatOptions) -> str:
    """The source of the template that a chat uses, chosen as `PreTrainedTokenizerBase.get_chat_template` does.

    Raises:
        BadOption: there is none, none of that name, or several and no default.
    """
    every = {**({DEFAULT: default} if default is not None else {}), **named}
    if not every:
        raise BadOption("this model has no chat template", hint="use plain text")
    name = options.template or (TOOL_USE if options.tools is not None and TOOL_USE in every else DEFAULT)
    if name not in every:
        raise BadOption(
            f"this model has no chat template {name[:80]!r}", hint=f"name one of: {', '.join(sorted(every))[:200]}"
        )
    return every[name]


def chat_variables(
    messages: Messages, options: ChatOptions, *, specials: Mapping[str, str], add_generation_prompt: bool
) -> dict[str, Any]:
    """The variables of one conversation, as `apply_chat_template` gives them.

    specials: `bos_token` and others to their texts; those that the model lacks are missing, not empty.
    """
    turns = [{key: value for key, value in message.items() if value is not None} for message in messages]
    if options.system is not None:
        turns.insert(0, {"role": "system", "content": options.system})
    return {
        "documents": None,
        **specials,
        **options.variables,
        "messages": [_with_reasoning(turn) for turn in turns],
        "tools": None if options.tools is None else list(options.tools),
        "add_generation_prompt": add_generation_prompt,
    }


def _with_reasoning(turn: dict[str, Any]) -> dict[str, Any]:
    """`turn` with its reasoning under every name that templates read it by."""
    reasoning = next((turn[key] for key in _REASONING if key in turn), None)
    return turn if reasoning is None else {"thinking": reasoning, **turn, "reasoning_content": reasoning}


def render(template: str, conversations: Sequence[Mapping[str, Any]], *, now: datetime | None = None) -> list[str]:
    """Render `template` once for each mapping of its variables (see `chat_variables`), all in one child process.

    now: what `strftime_now` shows; None = `FIXED_NOW`.

    Raises:
        MissingDependency: jinja2 is not installed.
        MalformedFile: a template that is too long, has errors, does what is not allowed, refuses the messages, or
            takes more time, memory or text than the limits above.
    """
    if importlib.util.find_spec("jinja2") is None:
        raise MissingDependency("chat templates need jinja2", hint="pip install 'quantkit[text]'")
    if len(template) > MAX_TEMPLATE_BYTES:
        raise MalformedFile(f"the chat template has {len(template):,} characters; the limit is {MAX_TEMPLATE_BYTES:,}")
    given = list(conversations)
    size, seconds = len(json.dumps(given)), MAX_SECONDS + CONVERSATION_SECONDS * len(given)
    job = {
        "path": sys.path,
        "template": template,
        "conversations": given,
        "now": (now or FIXED_NOW).isoformat(),
        "seconds": seconds,
        "memory": MAX_MEMORY_BYTES + MEMORY_PER_BYTE * size,
        "characters": MAX_TEXT_CHARS + TEXT_PER_BYTE * size,
    }
    answer = _answer(json.dumps(job).encode(), seconds)
    if "error" in answer:
        raise MalformedFile(f"the chat template failed: {answer['error']}")
    texts: list[str] = answer["texts"]
    if any(map(_SURROGATE.search, texts)):
        raise MalformedFile("the chat template failed: it writes half of a surrogate pair")
    return texts


def _answer(job: bytes, seconds: float) -> dict[str, Any]:
    try:
        # -I: nothing from the environment, and never the current folder, decides what the child imports.
        child = subprocess.run(
            supervised([sys.executable, "-I", "-c", _CHILD]),
            input=job,
            capture_output=True,
            timeout=seconds + WAIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise MalformedFile("the chat template does not come to an end") from None
    if child.returncode == -signal.SIGPROF:
        raise MalformedFile(f"the chat template took more than {seconds:.3g} s of processor time")
    try:
        answer: dict[str, Any] = json.loads(child.stdout)
    except ValueError:
        raise MalformedFile(f"the chat template stopped its process (exit status {child.returncode})") from None
    return answer
