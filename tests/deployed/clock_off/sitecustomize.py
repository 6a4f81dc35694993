"""A clock that is `CLOCK_OFF` seconds off, for every Python program that has this folder on its PYTHONPATH.

It stands where a wrong clock would stand for Flower, which asks `datetime.datetime.now`: libfaketime 0.9.10 breaks
`time.sleep` of Python 3.11, and setting the machine's clock would put off every other program.
"""

import datetime as dt
import os

_RIGHT = dt.datetime
_OFF = dt.timedelta(seconds=float(os.environ.get("CLOCK_OFF", "0")))


class _Wrong(_RIGHT):
    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:
        """Earlier or later than it is."""
        return _RIGHT.now(tz) + _OFF


dt.datetime = _Wrong  # type: ignore[misc]
