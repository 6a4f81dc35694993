"""Every error that a user of Isthmus can cause, in one place.

    IsthmusError
    ├── ConfigError       a file or an argument says something impossible     exit 2
    ├── DataError         a table cannot be read as what it was declared      exit 2
    ├── RunError          a run folder, checkpoint or resume does not fit     exit 2
    ├── EngineError       an engine cannot tell users' gradients apart exactly  exit 2
    └── Refused           a rule said no; nothing left the domain             exit 1
        ├── BudgetExhausted   the ledger has no room for what was asked
        ├── PolicyRefused     the business unit's own policy forbids it
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


class EngineError(IsthmusError):
    """Users' gradients of a module cannot be told apart exactly; nothing was trained."""


class Refused(IsthmusError):  # noqa: N818 - a refusal is an answer, not a fault
    """A rule of the domain or of the server said no.

    Args:
        message: What, why, and the way out.
        rule: Which rule, in one word, stable.
        asked: The value that was asked for.
        limit: The value that the rule allows.
    """

    exit_code = 1

    def __init__(self, message: str, *, rule: str = "request", asked: str = "", limit: str = "") -> None:
        super().__init__(message)
        self.rule = rule
        self.asked = asked
        self.limit = limit


class BudgetExhausted(Refused):
    """The ledger has no room for the release that was asked for."""


class PolicyRefused(Refused):
    """A rule of the business unit's policy said no."""

    def __init__(self, rule: str, asked: str, limit: str, *, otherwise: str = "Ask for less") -> None:
        super().__init__(
            f"the policy of this domain refuses {asked}: rule `{rule}` says {limit}. {otherwise}, or let the "
            f"business unit change its policy.toml.",
            rule=rule,
            asked=asked,
            limit=limit,
        )


class ReplyRefused(Refused):
    """The server did not accept what a domain sent."""
