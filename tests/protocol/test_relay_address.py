"""Relay URLs: what is read is what was written, and a fingerprint is never lost on the way."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2psync.errors import InputError
from p2psync.ports import RelayAddress
from p2psync.protocol.relay_address import parse_relay_address

PIN = bytes(range(32))
PIN_TEXT = base64.urlsafe_b64encode(PIN).decode().rstrip("=")

hosts = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z]{2,6})?", fullmatch=True) | st.ip_addresses().map(str)


@given(hosts, st.integers(1, 65535), st.none() | st.binary(min_size=32, max_size=32))
def test_text_and_back(host: str, port: int, fingerprint: bytes | None) -> None:
    address = RelayAddress(host, port, fingerprint)
    assert parse_relay_address(str(address)) == address


def test_what_a_relay_prints() -> None:
    assert parse_relay_address(f"https://Relay.Example:8443/#sha256={PIN_TEXT}") == RelayAddress(
        "relay.example", 8443, PIN
    )
    assert parse_relay_address("https://relay.example") == RelayAddress("relay.example", 443)


@pytest.mark.parametrize(
    "text",
    [
        "", "relay.example", "http://relay.example/", "https://", "https:///", "https://user@relay.example/",
        "https://relay.example/path", "https://relay.example/?a=b", "https://relay.example:0/", "https://a b/",
        "https://relay.example:99999/", "https://[::1/", "https://[::1%25eth0]/", "https://relay_.example/",
        f"https://relay.example/#sha256={PIN_TEXT[:-1]}", f"https://relay.example/#sha256={PIN_TEXT[:-1]}9",
        f"https://relay.example/#sha512={PIN_TEXT}", "https://relay.example/#sha256=", "https://relay.example/#x",
        f"https://relay.example/#sha256={PIN_TEXT}&", "https://" + "a" * 600, "https://a\r\nb/", "https://ü.example/",
    ],
)  # fmt: skip
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="URL of a relay"):
        parse_relay_address(text)
