"""`isthmus vault` refuses wrong use before it touches anything; tests/clients/test_serving.py runs it."""

import pytest
from tests.cli.called import Caller
from tests.conftest import TinyDomain


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--seed", "5"), "with --ledger FILE"),
        (("--listen", "127.0.0.1:0"), "--listen needs --tls-cert"),
        (("--tls-cert", "a.pem"), "belong to --listen"),
    ],
)
def test_wrong_use_is_one_error_with_the_way_out(
    isthmus: Caller, tiny_domain: TinyDomain, options: tuple[str, ...], words: str
) -> None:
    """Exit 2; no ledger was made."""
    folder = tiny_domain()
    called = isthmus("vault", folder, *options)
    assert (called.code, words in called.err) == (2, True)
    assert not (folder / "ledger.db").exists()
