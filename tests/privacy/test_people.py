"""One person in several domains: composed at a total delta, in the worst set that the declarations admit."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.privacy import people
from isthmus.privacy.accounting import Spending, epsilon, gaussian, poisson_gaussian
from isthmus.privacy.people import Share, person_epsilon

DELTA = 1e-5
PLAN = Spending.of([poisson_gaussian(0.01, 1.0, 1000)])
DEAR, CHEAP = Spending.of([gaussian(3.0, 2)]), Spending.of([gaussian(12.0)])


def together(*spendings: Spending) -> float:
    """Epsilon of all of them."""
    return epsilon([event for spending in spendings for event in spending.events], DELTA)


@pytest.mark.parametrize(("k_max", "figure"), [(1, 1.83), (2, 2.58), (3, 3.19), (5, 4.20)])
def test_the_figures_of_the_design_hold(k_max: int, figure: float) -> None:
    """1,000 steps at rate .01 and noise 1, delta 1e-5, one person in k of eight such domains."""
    shares = {f"domain{i}": Share(spending=PLAN, overlap=True, k_max=k_max) for i in range(8)}
    found = person_epsilon(shares, DELTA)
    assert found.epsilon == pytest.approx(figure, abs=5e-3)
    assert found.exact
    assert len(found.domains) == k_max


def test_where_nothing_is_declared_a_person_is_in_every_domain() -> None:
    """Silence is never an advantage."""
    found = person_epsilon({"a": Share(spending=DEAR), "b": Share(spending=CHEAP), "c": Share(spending=PLAN)}, DELTA)
    assert found.epsilon == together(DEAR, CHEAP, PLAN)
    assert set(found.domains) == {"a", "b", "c"}
    assert "nothing declared" in found.rule.lower()
    assert "parallel" not in found.rule


def test_only_a_declaration_of_its_own_leaves_a_domain_out() -> None:
    """The domain that shares nobody stands alone, the others compose; the words name it."""
    shares = {
        "apart": Share(spending=PLAN, overlap=False),
        "b": Share(spending=DEAR, overlap=True),
        "c": Share(spending=CHEAP),
    }
    found = person_epsilon(shares, DELTA)
    assert found.epsilon == max(together(DEAR, CHEAP), together(PLAN))
    assert "parallel composition: apart" in found.rule
    alone = person_epsilon({**shares, "b": Share(spending=DEAR, overlap=False)}, DELTA)
    assert alone.epsilon == max(together(PLAN), together(DEAR), together(CHEAP))


def test_k_max_binds_only_the_people_of_the_domain_that_declared_it() -> None:
    """Two domains that say 2 do not protect the people of three that say nothing."""
    shares = {
        "a": Share(spending=PLAN, k_max=2),
        "b": Share(spending=PLAN, k_max=2),
        **{name: Share(spending=DEAR) for name in ("c", "d", "e")},
    }
    found = person_epsilon(shares, DELTA)
    assert found.epsilon == max(together(DEAR, DEAR, DEAR), together(PLAN, DEAR), together(PLAN, PLAN))
    assert "a: 2, b: 2" in found.rule


SHARES = st.lists(
    st.builds(
        Share,
        spending=st.sampled_from([DEAR, CHEAP, Spending(), Spending.of([poisson_gaussian(0.1, 2.0, 50)])]),
        overlap=st.sampled_from([None, True]),
        k_max=st.sampled_from([None, 1, 2, 3]),
    )
    | st.builds(Share, spending=st.sampled_from([DEAR, CHEAP]), overlap=st.just(value=False)),
    min_size=1,
    max_size=5,
)


@settings(max_examples=25, deadline=None)
@given(drawn=SHARES)
def test_the_answer_is_that_of_brute_force(drawn: list[Share]) -> None:
    """All subsets, each admitted or not by its members' declarations, one by one."""
    shares = {f"d{i}": share for i, share in enumerate(drawn)}
    costs = [
        together(*(shares[name].spending for name in names))
        for size in range(1, len(shares) + 1)
        for names in itertools.combinations(shares, size)
        if all(
            size == 1 or (shares[name].overlap is not False and (shares[name].k_max or size) >= size) for name in names
        )
    ]
    found = person_epsilon(shares, DELTA)
    assert found.exact
    assert found.epsilon == max(costs)
    assert together(*(shares[name].spending for name in found.domains)) == found.epsilon


def test_too_many_sets_are_bounded_from_above(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is never below the exact answer, not absurdly above it, and says that it is a bound."""
    shares = {
        f"d{i}": Share(
            spending=Spending.of([poisson_gaussian(0.01, 1 + 0.1 * i, 1000), gaussian(20.0 + i)]), k_max=2 + i % 2
        )
        for i in range(6)
    }
    exact = person_epsilon(shares, DELTA)
    monkeypatch.setattr(people, "MOST_SETS", 3)
    bound = person_epsilon(shares, DELTA)
    assert exact.exact
    assert not bound.exact
    assert exact.epsilon <= bound.epsilon <= 1.3 * exact.epsilon
    assert "bounded from above" in bound.rule
    assert set(bound.domains) == set(exact.domains)


def test_a_hundred_equal_domains_are_one_sum() -> None:
    """Which of a hundred equal domains a person is in makes no difference, so it is looked at once."""
    shares = {f"d{i:03}": Share(spending=PLAN, k_max=3) for i in range(100)}
    found = person_epsilon(shares, DELTA)
    assert found.exact
    assert found.epsilon == together(PLAN, PLAN, PLAN)


def test_names_and_order_do_not_matter() -> None:
    """To the last bit."""
    shares = [Share(spending=DEAR, k_max=2), Share(spending=PLAN), Share(spending=CHEAP, k_max=2)]
    found = {
        person_epsilon(dict(zip(names, order, strict=True)), DELTA).epsilon
        for names in ("abc", "zyx")
        for order in itertools.permutations(shares)
    }
    assert len(found) == 1


def test_impossible_declarations_are_refused() -> None:
    """No domain at all, k_max 0, or several domains for people who are in one."""
    with pytest.raises(ValueError, match="at least one domain"):
        person_epsilon({}, DELTA)
    with pytest.raises(ValueError, match="k_max must be at least 1"):
        Share(spending=PLAN, k_max=0)
    with pytest.raises(ValueError, match="in 1 domain"):
        Share(spending=PLAN, overlap=False, k_max=2)
