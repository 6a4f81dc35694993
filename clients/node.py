"""Flower's SuperNode, looking for messages more often than every three seconds.

    python -m isthmus.clients.node --superlink HOST:PORT ...      # what flower-supernode takes

A SuperNode that has found no message sleeps for 3 s, a constant (1.42), and with trivial training that is most of a
round. Nothing else about it is changed. This file and `isthmus.grid` are where private names of Flower are touched.
"""

import time
from types import SimpleNamespace

from flwr.supernode import start_client_internal
from flwr.supernode.cli import flower_supernode

LONGEST_SLEEP = 0.5
"""Seconds; a look costs the coordinator one request."""


def main() -> None:
    """Run the SuperNode until it is told to stop."""
    vars(start_client_internal)["time"] = SimpleNamespace(sleep=_sleep)
    flower_supernode()


def _sleep(seconds: float) -> None:
    time.sleep(min(seconds, LONGEST_SLEEP))


if __name__ == "__main__":
    main()
