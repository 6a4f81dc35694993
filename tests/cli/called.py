"""Call a command in this process: what a user sees, without the seconds that a new process takes."""

import sys
from dataclasses import dataclass

import pytest

from isthmus.cli import main


@dataclass(frozen=True)
class Called:
    """What a command left behind.

    Attributes:
        code: Exit code.
        out: Standard output.
        err: Standard error, on one line.
    """

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Caller:
    """Calls commands and catches what they print."""

    patch: pytest.MonkeyPatch
    capture: pytest.CaptureFixture[str]

    def __call__(self, *arguments: object) -> Called:
        """Call `isthmus` with arguments."""
        self.patch.setattr(sys, "argv", ["isthmus", *map(str, arguments)])
        self.capture.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        printed = self.capture.readouterr()
        return Called(int(end.value.code or 0), printed.out, " ".join(printed.err.split()))
