"""The command `quantkit`, also as `python -m quantkit`.

An interrupt may come at any moment. While modules are being imported it ends the process on the spot, with one line,
because an exception would surface anywhere; `quantkit.cli.app.main` takes over once there is something to clean up.
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

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _leave)
        from quantkit.cli.app import main  # noqa: PLC0415
    except KeyboardInterrupt:
        _leave()
    code = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # what was asked for is done; the interpreter only tidies up
    sys.exit(code)


def _leave(*_: object) -> None:
    os.write(2, LINE)
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    entry()
