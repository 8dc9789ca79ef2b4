"""The command line: one file per verb; each parses, calls one function and prints.

`main` is the only place that turns errors into exit codes: 0 done and verified, 1 verification failed, 2 could not run.
Nothing heavier than typer is imported before a verb runs, so `--help` answers at once.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import FrameType

import typer
from rich.markup import escape as escape_markup

from quantkit.cli import demo, export, formats, golden, inspect, plan, quantize, run, verify
from quantkit.errors import QuantkitError, one_line

app = typer.Typer(
    name="quantkit",
    help="Turn a MiniCPM checkpoint into every form that a device can run, and prove that each still is the model.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
VERBS: Mapping[str, Callable[..., None]] = {
    "inspect": inspect.inspect,
    "plan": plan.plan,
    "quantize": quantize.quantize,
    "export": export.export,
    "golden": golden.golden,
    "verify": verify.verify,
    "run": run.run,
    "demo": demo.demo,
    "formats": formats.formats,
}
for _name, _function in VERBS.items():
    app.command(_name)(_function)


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
    version: bool = typer.Option(False, "--version", help="Show the version and exit."),
) -> None:
    if version:
        from quantkit import __version__

        typer.echo(f"quantkit {__version__}")
        raise typer.Exit
    context.obj = debug


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code and never lets a traceback through unless `--debug` is given."""
    arguments = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    signal.signal(signal.SIGTERM, _terminate)
    try:
        command = typer.main.get_command(app)
        with command.make_context("quantkit", arguments) as context:
            command.invoke(context)
        code = 0
    except typer.Exit as done:
        code = done.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left; silence the flush at exit
        code = 0
    except QuantkitError as error:
        code = _fail(error, arguments, str(error), error.hint, error.exit_code)
    except (KeyboardInterrupt, typer.Abort) as error:
        code = _fail(error, arguments, "interrupted; nothing was published", None)
    except MemoryError as error:
        code = _fail(error, arguments, "out of memory", "close other programs, or use fewer or shorter samples")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        code = _fail(error, arguments, f"{where}{error.strerror or error}", None)
    except Exception as error:
        code = _fail(error, arguments, *_explained(error))
    return code


def _explained(error: Exception) -> tuple[str, str]:
    """Message and hint for a usage error of click, and for what nobody expected."""
    usage_error = typer.BadParameter.__mro__[1]  # click's UsageError, wherever this typer keeps click
    format_message: Callable[[], str] | None = getattr(error, "format_message", None)
    if isinstance(error, usage_error) and format_message is not None:
        return format_message().rstrip("."), "quantkit --help lists the commands"
    return f"internal error ({type(error).__name__}: {error})", "run again with --debug"


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _fail(
    error: BaseException | None, arguments: Sequence[str], message: str, hint: str | None, exit_code: int = 2
) -> int:
    """Print one line on stderr: what is wrong, where, and how to mend it."""
    if error is not None and "--debug" in arguments:
        traceback.print_exception(error)
    line = one_line(message) + (f" (hint: {one_line(hint)})" if hint else "")
    from rich.console import Console

    Console(stderr=True, soft_wrap=True, highlight=False).print(f"[bold red]error:[/] {escape_markup(line)}")
    return exit_code


def entry() -> None:
    """Console script."""
    sys.exit(main())
