"""Addresses: what is accepted, what is refused, and that text and value agree."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2psync.errors import InputError
from p2psync.net.addresses import Address, format_address, is_link_local, parse_address, parse_peer_address


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("192.0.2.7:22067", "192.0.2.7", 22067),
        (":22067", "", 22067),
        ("[::]:0", "::", 0),
        ("[fe80::1%eth0]:1", "fe80::1%eth0", 1),
        ("nas.example.:65535", "nas.example.", 65535),
        (" my_host-2:80 ", "my_host-2", 80),
    ],
)
def test_accepted(text: str, host: str, port: int) -> None:
    assert parse_address(text) == Address(host, port)


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "host", "host:", "host:65536", "host:-1", "host:+1", "host:٣", "::1:80", "fe80::1:22067", "[::1]",
        "[1.2.3.4]:5", "[zz::1]:5", "[::1%]:5", "[::1%a b]:5", "a b:1", "-a:1", "a-:1", "a..b:1", "1.2.3:4",
        "256.1.1.1:4", "x" * 64 + ":1", "a\n:1", "a/b:1", "häuser:1", "a" * 301,
    ],
)  # fmt: skip
def test_refused_with_the_allowed_forms(text: str) -> None:
    with pytest.raises(InputError, match=r"PORT|65535"):
        parse_address(text)


@pytest.mark.parametrize("text", [":22067", "host:0"])
def test_a_peer_needs_host_and_port(text: str) -> None:
    with pytest.raises(InputError, match="cannot be connected to"):
        parse_peer_address(text)


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)), st.integers(0, 65535))
def test_round_trip(ip: object, port: int) -> None:
    assert parse_address(format_address(str(ip), port)) == Address(str(ip), port)


def test_link_local() -> None:
    assert is_link_local("fe80::1%3")
    assert is_link_local("169.254.1.1")
    assert not is_link_local("fd00::1")
    assert not is_link_local("name")
