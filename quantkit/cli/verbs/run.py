"""`quantkit run`: text out of any readable artifact."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantkit.cli.options.shared import Attention, Engine, Json, Quiet, Variant
from quantkit.cli.output import Output
from quantkit.errors import BadOption, MalformedFile, ReadFailed

if TYPE_CHECKING:
    from quantkit import ChatOptions

MAX_TOOLS_BYTES = 1 << 20
MAX_PROMPT_BYTES = 16 << 20
STDIN = "-"


def run(
    artifact: Annotated[Path, typer.Argument(help="A model folder, a quantized folder, or a single-file artifact.")],
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="Text to continue; - = read from stdin.")],
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Stop after this many tokens.")] = 64,
    chat: Annotated[bool, typer.Option("--chat", help="Wrap the prompt as a user turn of the chat template.")] = False,
    system: Annotated[
        str | None, typer.Option("--system", help="With --chat: a system turn before it.", show_default=False)
    ] = None,
    tools: Annotated[
        Path | None,
        typer.Option(
            "--tools", help="With --chat: JSON file with a list of functions that may be called.", show_default=False
        ),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            "--template",
            help="With --chat: name of the chat template, where there are several.",
            show_default="tool_use for --tools, else default",
        ),
    ] = None,
    template_option: Annotated[
        list[str] | None,
        typer.Option(
            "--template-option",
            metavar="NAME=VALUE",
            help="With --chat: a variable of the template, such as enable_thinking=false; may be repeated.",
            show_default=False,
        ),
    ] = None,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0 = always the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option("--top-p", min=0.01, max=1.0, help="Sample from this share of mass.")] = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the sampling.")] = 0,
    engine: Engine = "auto",
    attention: Attention = None,
    variant: Variant = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Continue a prompt, streaming. The engine only computes logits; sampling is the same everywhere."""
    from quantkit import Sampling, generate

    output = Output(as_json=as_json, quiet=quiet)
    options = _chat_options(system, tools, template, template_option or [])
    if options is not None and not chat:
        raise BadOption("--system, --tools, --template and --template-option shape a chat", hint="add --chat")
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    continuation = generate(
        artifact,
        _piped() if prompt == STDIN else prompt,
        sampling,
        chat=options or chat,
        engine=engine,
        attention=attention,
        variant=variant,
    )
    pieces: list[str] = []
    for piece in continuation:
        pieces.append(piece)
        output.stream(piece)
    output.result(
        {
            "engine": continuation.engine,
            "prompt": continuation.prompt,
            "text": "".join(pieces),
            "token_ids": continuation.token_ids,
            "notes": continuation.notes,
        },
        lines=[""],
    )
    output.notes(continuation.notes)


def _piped() -> str:
    """The text on stdin, without the line end that `echo` puts behind it."""
    data = sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1)
    if len(data) > MAX_PROMPT_BYTES:
        raise BadOption(f"the prompt on stdin has more than {MAX_PROMPT_BYTES:,} bytes")
    try:
        return data.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise BadOption(f"the prompt on stdin is not UTF-8: byte {error.start}") from None


def _chat_options(
    system: str | None, tools: Path | None, template: str | None, variables: Sequence[str]
) -> ChatOptions | None:
    """What the options say about a chat; None where they say nothing."""
    from quantkit import ChatOptions

    if system is None and tools is None and template is None and not variables:
        return None
    return ChatOptions(
        system=system,
        tools=None if tools is None else _read_tools(tools),
        template=template,
        variables=dict(map(_variable, variables)),
    )


def _variable(option: str) -> tuple[str, Any]:
    """NAME=VALUE with a value in JSON (false, 3, "text"), or else a text as it stands."""
    name, equals, value = option.partition("=")
    if not equals:
        raise BadOption(f"--template-option {option[:80]!r} is not NAME=VALUE", hint="such as enable_thinking=false")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value


def _read_tools(path: Path) -> list[dict[str, Any]]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ReadFailed(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > MAX_TOOLS_BYTES:
        raise MalformedFile(f"{path} has {len(data):,} bytes; the limit for tools is {MAX_TOOLS_BYTES:,}")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise MalformedFile(f"{path} is not JSON") from None
    tools = value if isinstance(value, list) else [value]
    if not all(isinstance(tool, dict) for tool in tools):
        raise MalformedFile(f"{path} must hold a list of functions, each as a JSON object")
    return tools
