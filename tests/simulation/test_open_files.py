"""A simulation of many domains has room for their files, or is refused before it starts."""

import resource
from collections.abc import Iterator

import pytest

from isthmus.errors import RunError
from isthmus.simulation.open_files import allow_open_files


@pytest.fixture
def limits() -> Iterator[tuple[int, int]]:
    """A low soft limit, put back afterwards; and the hard limit."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
    yield (1024, before[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_few_domains_change_no_limit(limits: tuple[int, int]) -> None:
    """Who needs no more asks for no more."""
    allow_open_files(200)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == limits


def test_a_thousand_domains_raise_the_soft_limit_to_what_they_take(limits: tuple[int, int]) -> None:
    """Three files for each ledger, and room beside them; the hard limit stays."""
    allow_open_files(1000)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert 3000 < soft < 4000
    assert hard == limits[1]


def test_more_domains_than_the_machine_allows_are_refused_with_both_numbers(limits: tuple[int, int]) -> None:
    """Not in the middle of a run, with a ledger that cannot be opened."""
    if limits[1] == resource.RLIM_INFINITY:
        pytest.skip("this machine has no hard limit of open files")
    with pytest.raises(RunError, match=rf"{limits[1]} domains need \d+ open files.*allows a process {limits[1]}\. "):
        allow_open_files(limits[1])
