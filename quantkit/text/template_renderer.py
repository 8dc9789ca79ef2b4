"""The child process of `chat_template.py`: renders templates within limits, as transformers renders them.

A template finds here what `transformers/utils/chat_template_utils.py` (5.24) gives it: the `generation` tag, loop
controls, `raise_exception`, `strftime_now`, `tojson` with its options, and `dict` and `namespace` that hold nothing of
Python's own. Only the clock is another: it stands still at the moment that the job names.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace


def render_job(job: Mapping[str, Any]) -> None:
    """Limit this process, render, and print {"texts": [...]} or {"error": "one line"} as JSON.

    job: `template`, `conversations` (variables of each), `now` (ISO 8601), and the limits `seconds` of processor time,
    `memory` in bytes and `characters` of text.
    """
    _limit(job["seconds"], job["memory"])
    try:
        answer: dict[str, Any] = {"texts": _texts(job)}
    except MemoryError:
        answer = {"error": f"it needs more than {job['memory'] >> 20} MiB"}
    except RecursionError:
        answer = {"error": "it calls itself without end"}
    except TemplateSyntaxError as error:
        answer = {"error": f"line {error.lineno}: {error.message}"}
    except Exception as error:  # a template can raise anything, and it is all the template's fault
        answer = {"error": f"{type(error).__name__}: {error}"}
    if "error" in answer:
        answer = {"error": (answer["error"].splitlines() or [""])[0][:200]}
    json.dump(answer, sys.stdout)


def _texts(job: Mapping[str, Any]) -> list[str]:
    compiled = _environment(datetime.fromisoformat(job["now"])).from_string(job["template"])
    texts: list[str] = []
    room = most = job["characters"]
    for variables in job["conversations"]:
        parts = []
        for part in compiled.generate(**variables):
            room -= len(part)
            if room < 0:
                raise ValueError(f"it writes more than {most:,} characters")
            parts.append(part)
        texts.append("".join(parts))
    return texts


def _environment(now: datetime) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = now.strftime
    environment.globals["dict"] = TemplateDict()
    environment.globals["namespace"] = TemplateNamespace
    return environment


class Generation(Extension):
    """`{% generation %}...{% endgeneration %}`: what an assistant wrote, for training masks; renders as its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 asks for a set

    def parse(self, parser: Parser) -> nodes.Node:
        """A call block, as in transformers: variables that are set inside do not leave it."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Macro) -> str:
        text: str = caller()
        return text


class TemplateDict:
    """What a template calls `dict`: makes dictionaries, and is no class to climb from."""

    def __call__(self, *args: Any, **keys: Any) -> dict[Any, Any]:  # noqa: ANN401 - a template's own values
        """`dict`."""
        return dict(*args, **keys)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:  # noqa: ANN401
        """`dict.fromkeys`."""
        return dict.fromkeys(*args)


class TemplateNamespace(Namespace):
    """jinja2's `namespace` without names that begin with an underscore."""

    def __init__(*args: Any, **keys: Any) -> None:  # noqa: ANN401 - so that `namespace(self=...)` works
        self, *rest = args
        values = dict(*rest, **keys)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:  # noqa: ANN401
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace holds no name that begins with an underscore: {name!r}")


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _limit(seconds: float, memory: int) -> None:
    """Let the system stop this process after so much processor time, and refuse it more memory.

    Processor time, unlike the clock's, does not depend on how busy the machine is.
    """
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.setitimer(signal.ITIMER_PROF, seconds)
