"""Every error that a user of Isthmus can cause, in one place.

    IsthmusError
    ├── ConfigError       a file or an argument says something impossible     exit 2
    ├── DataError         a table cannot be read as what it was declared      exit 2
    ├── RunError          a run folder, checkpoint or resume does not fit     exit 2
    └── Refused           a rule said no; nothing left the domain             exit 1
        ├── BudgetExhausted   the ledger has no room for what was asked
        └── ReplyRefused      the server did not accept a domain's reply

A message names what was wrong, the rule, the value seen and the way out, so that the command
line can print it as it is. Anything else that is raised is a bug of ours.
"""


class IsthmusError(Exception):
    """Base of all errors whose message is meant for the user."""

    exit_code = 2


class ConfigError(IsthmusError):
    """A configuration file or an argument is wrong."""


class DataError(IsthmusError):
    """A table of a domain cannot be read as declared."""


class RunError(IsthmusError):
    """A run folder cannot be used as asked."""


class Refused(IsthmusError):  # noqa: N818 - a refusal is an answer, not a fault
    """A rule of the domain or of the server said no."""

    exit_code = 1


class BudgetExhausted(Refused):
    """The ledger has no room for the release that was asked for."""


class ReplyRefused(Refused):
    """The server did not accept what a domain sent."""
