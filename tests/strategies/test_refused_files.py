"""What `[strategy]` of a federation file promises and cannot keep is refused before anybody is asked."""

import re
from pathlib import Path

import pytest

from isthmus.config import load_federation
from isthmus.errors import ConfigError


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ('name = "krum"\noutliers = 2', "needs at least 7 domains, got 5"),
        ('name = "median"\noutliers = 3', "needs at least 7 domains, got 5"),
        ('name = "trimmed_mean"\nweights = { d0 = 2.0 }', "leave `weights` out"),
        ('name = "fedavg"\noutliers = 1', "`outliers` belongs to median, trimmed_mean, krum"),
        ('name = "median"\noutliers = 0', "greater than or equal to 1"),
        ('name = "leave_one_out"', "needs `compare_every`"),
        ("compare_every = 2", "`compare_every` belongs to leave_one_out; fedavg compares nothing"),
        ('name = "leave_one_out"\ncompare_every = 0', "greater than or equal to 1"),
        ('name = "leave_one_out"\ncompare_every = 4\nevaluate_every = 2', "every comparison falls into a round"),
        ("temperature = 2.0", "`temperature` belongs to `domains_per_round`"),
        ("domains_per_round = 0", "greater than or equal to 1"),
        ("domains_per_round = 2\ntemperature = 0.0", "greater than 0"),
        ("domains_per_round = 6", "`strategy.domains_per_round` is 6, and 5 of the 5 domains can be drawn"),
        ("domains_per_round = 5\nweights = { d0 = 0.0 }", "4 of the 5 domains can be drawn"),
        ('name = "krum"\ndomains_per_round = 4', "needs 5 updates a round, got domains_per_round = 4"),
        ('name = "median"\noutliers = 2\ndomains_per_round = 4', "with 2 outliers needs 5 updates a round"),
    ],
)
def test_it_is_one_error_that_says_what_is_wrong(tmp_path: Path, settings: str, said: str) -> None:
    """Of five domains."""
    file = tmp_path / "federation.toml"
    domains = [f"d{number}" for number in range(5)]
    file.write_text(f'name = "f"\ndomains = {domains}\n[strategy]\n{settings}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_federation(file)
