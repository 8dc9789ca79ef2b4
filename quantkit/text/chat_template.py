"""Chat templates: the one place that renders them.

A template is a program that comes with a model. Jinja2's immutable sandbox keeps it from Python's internals, but
not from looping for ever or filling the memory, so it runs in a child process that the operating system limits.
The names it may use are those of transformers' chat templates, without the clock.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from quantkit.errors import MalformedFile, MissingDependency

MAX_TEMPLATE_CHARS = 256 << 10
MAX_TEXT_CHARS = 16 << 20
MAX_SECONDS = 10
MAX_MEMORY_BYTES = 1 << 30
_CHILD = (
    "import json, sys; job = json.load(sys.stdin); sys.path[:] = job.pop('path'); "
    "from quantkit.text.chat_template import render_job; render_job(job)"
)


def render(template: str, conversations: Sequence[Mapping[str, Any]]) -> list[str]:
    """Render `template` once for each mapping of its variables (`messages`, `add_generation_prompt`, ...).

    Raises:
        MissingDependency: jinja2 is not installed.
        MalformedFile: a template that is too long, has errors, does what is not allowed, refuses the messages, or
            takes more time, memory or text than `MAX_SECONDS`, `MAX_MEMORY_BYTES`, `MAX_TEXT_CHARS`.
    """
    if importlib.util.find_spec("jinja2") is None:
        raise MissingDependency("chat templates need jinja2", hint="pip install 'quantkit[text]'")
    if len(template) > MAX_TEMPLATE_CHARS:
        raise MalformedFile(f"the chat template has {len(template):,} characters; the limit is {MAX_TEMPLATE_CHARS:,}")
    job = json.dumps({"path": sys.path, "template": template, "conversations": list(conversations)})
    try:
        # -I: nothing from the environment, and never the current folder, decides what the child imports.
        child = subprocess.run(
            [sys.executable, "-I", "-c", _CHILD],
            input=job.encode(),
            capture_output=True,
            timeout=MAX_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise MalformedFile(f"the chat template took more than {MAX_SECONDS} s") from None
    try:
        answer = json.loads(child.stdout)
    except ValueError:
        raise MalformedFile(f"the chat template stopped its process (exit status {child.returncode})") from None
    if "error" in answer:
        raise MalformedFile(f"the chat template failed: {answer['error']}")
    texts: list[str] = answer["texts"]
    return texts


def render_job(job: Mapping[str, Any]) -> None:
    """The child's work: limit itself, render, and print {"texts": [...]} or {"error": "..."} as JSON."""
    _limit_resources()
    try:
        answer: dict[str, Any] = {"texts": _texts(job["template"], job["conversations"])}
    except MemoryError:
        answer = {"error": f"it needs more than {MAX_MEMORY_BYTES >> 20} MiB"}
    except RecursionError:
        answer = {"error": "it calls itself without end"}
    except Exception as error:  # a template can raise anything, and it is all the template's fault
        answer = {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:200]}
    json.dump(answer, sys.stdout)


def _texts(template: str, conversations: Sequence[Mapping[str, Any]]) -> list[str]:
    from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415 - only the child imports jinja2

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    compiled = environment.from_string(template)
    texts: list[str] = []
    room = MAX_TEXT_CHARS
    for variables in conversations:
        parts = []
        for part in compiled.generate(**variables):
            room -= len(part)
            if room < 0:
                raise ValueError(f"it writes more than {MAX_TEXT_CHARS:,} characters")
            parts.append(part)
        texts.append("".join(parts))
    return texts


def _to_json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> NoReturn:
    raise ValueError(message)


def _limit_resources() -> None:
    try:
        import resource  # noqa: PLC0415 - not on Windows, where the parent's time limit remains
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_SECONDS, MAX_SECONDS))
