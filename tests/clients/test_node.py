"""The SuperNode that looks for messages more often is Flower's in everything else."""

import inspect
import time

import pytest
from flwr.supernode import start_client_internal

from isthmus.clients import node


def test_flowers_constant_is_where_it_is_changed() -> None:
    """A new version of Flower that sleeps elsewhere, or not at all, shows here."""
    assert "time.sleep(3)" in inspect.getsource(start_client_internal.start_client_internal)


def test_no_sleep_is_longer_than_half_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's code sleeps through this file's function once it runs, and shorter naps stay as they are."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(start_client_internal, "time", start_client_internal.time)  # restored afterwards
    monkeypatch.setattr(node, "flower_supernode", lambda: [start_client_internal.time.sleep(s) for s in (3, 0.1)])
    node.main()
    assert slept == [0.5, 0.1]
