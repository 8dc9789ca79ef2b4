"""The command line: one file per verb; each parses, calls one function and prints.

`main` is the only place that turns errors into exit codes: 0 done and verified, 1 verification failed, 2 could not run.
Nothing heavier than typer is imported before a verb runs, so `--help` answers at once.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType

import typer
from rich.markup import escape as escape_markup

from quantkit.cli import demo, export, formats, golden, inspect, plan, quantize, run, verify
from quantkit.errors import QuantkitError, escaped

app = typer.Typer(
    name="quantkit",
    help="Turn a MiniCPM checkpoint into every form that a device can run, and prove that each form still is the model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
VERBS = {
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
        from quantkit import __version__  # noqa: PLC0415 - kept beside its only use

        typer.echo(f"quantkit {__version__}")
        raise typer.Exit
    context.obj = debug


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code and never lets a traceback through unless `--debug` is given."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGTERM, _terminate)
    usage_error = typer.BadParameter.__base__ or typer.BadParameter  # click's UsageError, wherever this typer keeps it
    try:
        code = typer.main.get_command(app).main(arguments, prog_name="quantkit", standalone_mode=False)
        return int(code or 0)
    except usage_error as error:
        message = getattr(error, "format_message", lambda: str(error))()
        return _fail(error, arguments, message, "quantkit --help")
    except QuantkitError as error:
        return _fail(error, arguments, str(error), error.hint, error.exit_code)
    except typer.Abort:
        return _fail(None, arguments, "interrupted; nothing was published", None)
    except KeyboardInterrupt as error:
        return _fail(error, arguments, "interrupted; nothing was published", None)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left; silence the flush at exit
        return 0
    except MemoryError as error:
        return _fail(error, arguments, "out of memory", "close other programs, or use fewer or shorter samples")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(error, arguments, f"{where}{error.strerror or error}", None)
    except Exception as error:
        return _fail(error, arguments, f"internal error ({type(error).__name__}: {error})", "run again with --debug")


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _fail(
    error: BaseException | None, arguments: Sequence[str], message: str, hint: str | None, exit_code: int = 2
) -> int:
    """Print one line on stderr: what is wrong, where, and how to mend it."""
    if error is not None and "--debug" in arguments:
        traceback.print_exception(error)
    line = escaped(message) + (f" (hint: {escaped(hint)})" if hint else "")
    from rich.console import Console  # noqa: PLC0415 - only on failure; keeps --help fast

    Console(stderr=True, soft_wrap=True, highlight=False).print(f"[bold red]error:[/] {escape_markup(line)}")
    return exit_code


def entry() -> None:
    """Console script."""
    sys.exit(main())
