"""The login key: a function of password and address that no relay can make cheaper."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2psync.crypto.password import login_key, normalise_email
from p2psync.errors import InputError

PASSWORD, EMAIL = "correct horse", "ann@example.org"


def test_golden() -> None:
    assert login_key(PASSWORD, EMAIL).hex() == "b2440f016a53ced201f10c3d880f15305be76fdae66d9ad10c45c73c0e3b7540"


def test_it_depends_on_password_and_address_and_on_nothing_else() -> None:
    key = login_key(PASSWORD, EMAIL)
    assert login_key(PASSWORD, "  Ann@Example.ORG ") == key
    assert login_key("cafe\u0301 au lait", EMAIL) == login_key("caf\u00e9 au lait", EMAIL)
    assert len({key, login_key("correct horsf", EMAIL), login_key(PASSWORD, "bob@example.org")}) == 3


@pytest.mark.parametrize(
    "cost", [{"memory_kib": 64 * 1024 - 1}, {"passes": 2}, {"memory_kib": 2**24}, {"passes": 1000}]
)
def test_the_cost_cannot_be_lowered_or_made_to_exhaust(cost: dict[str, int]) -> None:
    with pytest.raises(InputError, match="cost"):
        login_key(PASSWORD, EMAIL, **cost)


@pytest.mark.parametrize("password", ["", "too short", "x" * 1025])
def test_weak_and_endless_passwords_are_refused(password: str) -> None:
    with pytest.raises(InputError, match="password"):
        login_key(password, EMAIL)


@pytest.mark.parametrize(
    "address",
    ["", "ann", "@example.org", "ann@", "ann@example", "a b@example.org", "ann@exam ple.org", "ann@example.org\nBcc: x",
     "<ann@example.org>", "ann@@example.org", ".ann@example.org", "ann@-example.org", "änn@example.org",
     "ann@example..org", "a" * 65 + "@example.org", "ann@" + "a." * 130 + "org"],
)  # fmt: skip
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(InputError):
        normalise_email(address)


@given(st.text(max_size=600))
def test_a_normalised_address_is_printable_and_stays_as_it_is(text: str) -> None:
    try:
        address = normalise_email(text)
    except InputError:
        return
    assert address.isascii()
    assert address.isprintable()
    assert normalise_email(address) == address


def test_tags_and_subdomains_are_fine() -> None:
    assert normalise_email("Ann.Smith+p2p@mail.xn--bcher-kva.example") == "ann.smith+p2p@mail.xn--bcher-kva.example"
