"""The login key: a function of password and address that no relay can make cheaper."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2psync.crypto.password import login_key, normalise_email
from p2psync.errors import InputError
from p2psync.protocol.relay_address import parse_relay_address

PASSWORD, EMAIL, RELAY = "correct horse", "ann@example.org", "relay.example"


def test_golden() -> None:
    assert login_key(PASSWORD, EMAIL, RELAY).hex() == "374d1290bcd5223a0399a15c3328f7b340df4c1cf8b467da32a42a2628f3f127"


def test_it_depends_on_password_address_and_relay_and_on_nothing_else() -> None:
    key = login_key(PASSWORD, EMAIL, RELAY)
    assert login_key(PASSWORD, "  Ann@Example.ORG ", RELAY) == key
    assert login_key("cafe\u0301 au lait", EMAIL, RELAY) == login_key("caf\u00e9 au lait", EMAIL, RELAY)
    others = [("correct horsf", EMAIL, RELAY), (PASSWORD, "bob@example.org", RELAY), (PASSWORD, EMAIL, "evil.example")]
    assert len({key, *(login_key(*other) for other in others)}) == 4


def test_what_one_relay_learns_is_worth_nothing_at_another_however_they_are_reached() -> None:
    """The relay is what TLS proves: a pinned certificate at whatever address, else the host at whatever port."""
    pin = base64.urlsafe_b64encode(bytes(range(32))).decode().rstrip("=")
    urls = [
        [f"https://relay.example:22443/#sha256={pin}", f"https://192.0.2.7/#sha256={pin}"],
        ["https://relay.example/", "https://RELAY.example:8443"],
        ["https://evil.example/"],
    ]
    identities = [{parse_relay_address(url).identity for url in of_one} for of_one in urls]
    assert [len(of_one) for of_one in identities] == [1, 1, 1]
    assert len(set().union(*identities)) == 3


@pytest.mark.parametrize(
    "cost", [{"memory_kib": 64 * 1024 - 1}, {"passes": 2}, {"memory_kib": 2**24}, {"passes": 1000}]
)
def test_the_cost_cannot_be_lowered_or_made_to_exhaust(cost: dict[str, int]) -> None:
    with pytest.raises(InputError, match="cost"):
        login_key(PASSWORD, EMAIL, RELAY, **cost)


@pytest.mark.parametrize("password", ["", "too short", "x" * 1025])
def test_weak_and_endless_passwords_are_refused(password: str) -> None:
    with pytest.raises(InputError, match="password"):
        login_key(password, EMAIL, RELAY)


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
