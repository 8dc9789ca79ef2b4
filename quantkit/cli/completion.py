"""Completion of commands in a shell: the script that a shell is given, and the answers to what that script asks.

The script has the shell call quantkit itself, with what was typed in the environment (typer's protocol).
"""

from __future__ import annotations

import os
from typing import Any

COMPLETION = "_QUANTKIT_COMPLETE"
"""The variable in the environment of a call that asks how a command line goes on."""
SHELLS = ("bash", "zsh", "fish")


def completion_script(shell: str) -> str:
    """What a shell runs to complete the words of quantkit.

    Raises:
        BadOption: another shell than `SHELLS`.
    """
    from typer.completion import get_completion_script

    from quantkit.errors import chosen

    shell = chosen(shell, SHELLS, problem=f"no completion for the shell {shell[:80]!r}")
    return get_completion_script(prog_name="quantkit", complete_var=COMPLETION, shell=shell)


def answered(command: Any) -> int:  # noqa: ANN401 - a group of click, wherever this typer keeps click
    """Print how the command line in the environment may go on; returns an exit code."""
    from typer.completion import completion_init, shell_complete

    completion_init()
    return shell_complete(command, {}, "quantkit", COMPLETION, os.environ[COMPLETION])
