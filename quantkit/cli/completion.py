"""Completion of commands in a shell: the script that a shell is given, and the answers to what that script asks.

The script has the shell call quantkit itself, with what was typed in the environment (typer's protocol).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from typing import Any

COMPLETION = "_QUANTKIT_COMPLETE"
"""The variable in the environment of a call that asks how a command line goes on."""
SHELLS = ("bash", "zsh", "fish")


def plugins(room: str, *further: str) -> Callable[[], list[str]]:
    """What completes the name of a plug-in of a room, or one of the words `further`."""

    def words() -> list[str]:
        from quantkit import names

        return [*further, *names(room)]

    return words


def one_of(*words: str) -> Callable[[], list[str]]:
    """What completes one of `words`."""
    return lambda: list(words)


def in_lower_case(word: str | None) -> str | None:
    """A word that is taken in any case."""
    return None if word is None else word.lower()


def print_script(command: Any, shell: str) -> int:  # noqa: ANN401 - a group of click, wherever this typer keeps it
    """Print what a shell runs to complete the words of quantkit; returns an exit code.

    Raises:
        BadOption: another shell than `SHELLS`.
    """
    from quantkit.errors import chosen

    shell = chosen(shell, SHELLS, problem=f"no completion for the shell {shell[:80]!r}")
    return _asked(command, f"source_{shell}")


def answered(command: Any) -> int:  # noqa: ANN401
    """Print how the command line in the environment may go on; returns an exit code."""
    return _asked(command, os.environ[COMPLETION])


def _asked(command: Any, instruction: str) -> int:  # noqa: ANN401
    typer_completion: Any = import_module("typer.completion")  # it does not declare what it exports
    typer_completion.completion_init()
    code: int = typer_completion.shell_complete(command, {}, "quantkit", COMPLETION, instruction)
    return code
