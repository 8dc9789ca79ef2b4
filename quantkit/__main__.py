"""The command `quantkit`, also as `python -m quantkit`.

An interrupt may come at any moment. While modules are being imported it ends the process on the spot, with one line,
because an exception would surface anywhere; `quantkit.cli.app.main` takes over once there is something to clean up.

Before the first line of `entry` nothing of quantkit can hear it: Python starts up, `site` reads .pth files (an editable
installation has one that imports a finder), and `runpy` or the console script looks for this module. For these 20 ms or
so an interrupt ends with Python's own words, a traceback through none of quantkit's files.
"""

from __future__ import annotations

import os
import sys

INTERRUPTED = 130
LINE = b"error: interrupted; nothing was published\n"


def entry() -> None:
    """Console script; exits with the command's code, or `INTERRUPTED`."""
    try:
        import signal  # noqa: PLC0415 - it is imported where an interrupt is caught

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, _leave)
        from quantkit.cli.app import complete, main  # noqa: PLC0415
    except KeyboardInterrupt:
        _leave()
    code = complete()
    if code is None:
        code = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # what was asked for is done; the interpreter only tidies up
    # `python -m` remembers an interrupt that left the text of an `exec`, as `dataclass` uses it, though it was caught
    # later, and ends by SIGINT instead of `code`. The next text makes it forget (`run_eval_code_obj`, pythonrun.c).
    exec("")
    sys.exit(code)


def _leave(*_: object) -> None:
    os.write(2, LINE)
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    entry()
