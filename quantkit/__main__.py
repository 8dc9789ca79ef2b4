"""`python -m quantkit` is the command `quantkit`."""

from quantkit.cli.app import entry

entry()
