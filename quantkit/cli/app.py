"""The command line: `main`, and one file per verb in `verbs/`; each parses, calls one function and prints.

`main` is the only place that turns errors into exit codes: 0 done and verified, 1 verification failed, 2 could not run,
130 interrupted. With --json an error is an object on stdout, too.
Nothing heavier than typer is imported before a verb runs, so `--help` answers at once.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantkit.cli.completion import COMPLETION, answered, print_script
from quantkit.cli.verbs import (
    bench,
    demo,
    export,
    formats,
    golden,
    imatrix,
    inspect,
    plan,
    quantize,
    report,
    run,
    verify,
)
from quantkit.cli.verbs.eval import evaluate
from quantkit.errors import Interrupted, QuantkitError, nearest, one_line

if TYPE_CHECKING:
    from typing_extensions import Self

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
    "imatrix": imatrix.imatrix,
    "quantize": quantize.quantize,
    "export": export.export,
    "golden": golden.golden,
    "verify": verify.verify,
    "eval": evaluate,
    "report": report.report,
    "run": run.run,
    "bench": bench.bench,
    "demo": demo.demo,
    "formats": formats.formats,
}
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
DEBUG = "--debug"
AGAIN_SECONDS = 0.05
"""Until an interrupt that Python dropped, or that came during an import, comes again."""
IMPORTER = "<frozen importlib._bootstrap>"
"""The file of the frames that an import stands in."""
for _name, _function in VERBS.items():
    app.command(_name)(_function)


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    debug: bool = typer.Option(False, DEBUG, help="Show the traceback of an error; may stand anywhere."),
    version: bool = typer.Option(False, "--version", help="Show the version and exit."),
    completion: Annotated[
        str | None,
        typer.Option(
            "--completion",
            metavar="SHELL",
            help="Print what completes commands in bash, zsh or fish: source <(quantkit --completion bash).",
        ),
    ] = None,
) -> None:
    if version:
        from quantkit import __version__

        typer.echo(f"quantkit {__version__}")
        raise typer.Exit
    if completion is not None:
        raise typer.Exit(print_script(context.command, completion))
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
    context.obj = debug


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code and never lets a traceback through unless `--debug` is given."""
    arguments = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    with _Interrupts() as interrupts:
        return _run(arguments, interrupts)


def complete() -> int | None:
    """Answer a shell that asks, in the environment, how a command line goes on; None where none does."""
    return answered(typer.main.get_command(app)) if COMPLETION in os.environ else None


class _Interrupts:
    """SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt while they are `heeded`, and are counted otherwise.

    A SIGTERM or SIGHUP that is ignored, as nohup has it, stays so. Python drops an exception that is raised inside a
    finalizer, with a traceback on stderr; an interrupt that comes there is repeated by an alarm instead. So is one that
    comes during an import, where C extensions print it, and turn it into another error (`ml_dtypes`, when it imports
    numpy).
    """

    def __init__(self) -> None:
        self.heeded = False
        self.count = 0

    def __enter__(self) -> Self:
        self._hook, sys.unraisablehook = sys.unraisablehook, self._see_dropped
        heard = [number for number in SIGNALS if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN]
        self._handlers = {number: signal.signal(number, self._come) for number in heard}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        sys.unraisablehook = self._hook

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Heed them in the block, those that came before it, too."""
        try:
            self.heeded = True
            if self.count:
                raise KeyboardInterrupt
            yield
        finally:
            self.heeded = False

    def _come(self, _number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.heeded and _is_importing(frame):
            signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)
        elif self.heeded:
            raise KeyboardInterrupt

    def _see_dropped(self, dropped: sys.UnraisableHookArgs) -> None:
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)  # when this hook has returned
        else:
            self._hook(dropped)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != IMPORTER:
        frame = frame.f_back
    return frame is not None


def _run(arguments: list[str], interrupts: _Interrupts) -> int:
    try:
        with interrupts.raised():
            command = typer.main.get_command(app)
            # Anywhere in the line: it is wanted when a command has failed, and is then put at its end.
            words = [DEBUG] * (DEBUG in arguments) + [word for word in arguments if word != DEBUG]
            with command.make_context("quantkit", words) as context:
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
        code = _stopped(error, arguments)
    except MemoryError as error:
        code = _fail(error, arguments, "out of memory", "close other programs, or use fewer or shorter samples")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        code = _fail(error, arguments, f"{where}{error.strerror or error}", None)
    except Exception as error:
        # What is interrupted while it is imported may fail in any way.
        code = (
            _stopped(error, arguments) if interrupts.count else _fail(error, arguments, *_explained(error, arguments))
        )
    return code


def _stopped(error: BaseException, arguments: Sequence[str]) -> int:
    return _fail(error, arguments, "interrupted; nothing was published", None, Interrupted.exit_code)


def _explained(error: Exception, arguments: Sequence[str]) -> tuple[str, str]:
    """Message and hint for a usage error of click, and for what nobody expected."""
    usage_error = typer.BadParameter.__mro__[1]  # click's UsageError, wherever this typer keeps click
    format_message: Callable[[], str] | None = getattr(error, "format_message", None)
    if isinstance(error, usage_error) and format_message is not None:
        return _usage(error, format_message(), next((word for word in arguments if word in VERBS), None))
    return f"internal error ({type(error).__name__}: {error})", f"run again with {DEBUG}"


def _usage(error: Exception, message: str, verb: str | None) -> tuple[str, str]:
    """A wrong word on the command line; the hint names the nearest right one, and the page that lists them all."""
    context: Any = getattr(error, "ctx", None)  # None where a value is missing
    commands: Mapping[str, Any] = getattr(context.command, "commands", {}) if context is not None else {}
    page = f"{context.command_path if context is not None else f'quantkit {verb}'} --help"
    wrong = getattr(error, "option_name", None)
    near = None
    if wrong is not None and hasattr(error, "possibilities"):
        message = f"there is no option {wrong}"
        known = [flag for each in context.command.params for flag in (*each.opts, *each.secondary_opts)]
        near = nearest(wrong, [flag for flag in known if flag.startswith("--")])
    elif commands and (found := re.match(r"No such command '(.*?)'", message)):
        message = f"there is no command {found[1]!r}"
        near = nearest(found[1], commands)
    did = f"did you mean {near}? " if near else ""
    return message.rstrip("."), f"{did}{page} lists {'the commands' if commands else 'its options'}"


def _fail(
    error: BaseException | None, arguments: Sequence[str], message: str, hint: str | None, exit_code: int = 2
) -> int:
    """Print one line on stderr: what is wrong, where, and how to mend it; and the same as JSON where that was asked."""
    if error is not None and DEBUG in arguments:
        traceback.print_exception(error)
    from quantkit.cli.output import Output, write_json

    message, hint = one_line(message), one_line(hint) if hint else None
    with suppress(OSError):  # whoever was to read it is gone, maybe with the terminal
        Output(as_json=False).fail(message + (f" (hint: {hint})" if hint else ""))
        if "--json" in arguments:
            kind = type(error).__name__ if isinstance(error, QuantkitError) else None
            write_json({"error": {"kind": kind, "message": message, "hint": hint, "exit_code": exit_code}})
            sys.stdout.flush()
    return exit_code
