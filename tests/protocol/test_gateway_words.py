"""What a router may answer, and what of it is believed."""

from __future__ import annotations

import struct
from contextlib import suppress
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2psync.errors import InputError, Unreachable
from p2psync.protocol import natpmp, ssdp

ROUTER = IPv4Address("192.168.9.1")
ports = st.integers(0, 65535)
seconds = st.integers(0, 2**32 - 1)


# ── NAT-PMP ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_questions_of_the_rfc() -> None:
    """RFC 6886 sections 3.2 to 3.4."""
    assert natpmp.ask_address() == bytes(2)
    assert natpmp.ask_port(22067, 443, 7200) == bytes.fromhex("0002 0000 5633 01bb 00001c20")
    assert natpmp.ask_port(22067, 443, 0) == bytes.fromhex("0002 0000 5633 0000 00000000")


@given(seconds, st.integers(0, 2**32 - 1))
def test_an_address(epoch: int, address: int) -> None:
    data = struct.pack("!BBHII", 0, 128, 0, epoch, address)
    assert natpmp.read_answer(data) == natpmp.OutsideAddress(IPv4Address(address))


@given(seconds, ports, ports, seconds)
def test_a_port(epoch: int, inside: int, outside: int, lifetime: int) -> None:
    data = struct.pack("!BBHIHHI", 0, 130, 0, epoch, inside, outside, lifetime)
    assert natpmp.read_answer(data) == natpmp.MappedPort(inside, outside, lifetime)


@given(st.sampled_from((128, 130)), st.integers(1, 65535), st.binary(max_size=20))
def test_a_refusal_is_told(operation: int, result: int, rest: bytes) -> None:
    with pytest.raises(Unreachable, match="opens no port"):
        natpmp.read_answer(struct.pack("!BBHI", 0, operation, result, 7) + rest)


@given(st.integers(0, 15).flatmap(lambda size: st.just(struct.pack("!BBHIHHI", 0, 130, 0, 1, 2, 3, 4)[:size])))
def test_what_is_cut_off_is_no_answer(data: bytes) -> None:
    with pytest.raises(InputError):
        natpmp.read_answer(data)


@given(st.binary(max_size=40))
def test_anything_else_is_no_answer(data: bytes) -> None:
    with suppress(InputError, Unreachable):
        natpmp.read_answer(data)
        assert len(data) in (12, 16)


# ── SSDP ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def answer(url: str, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nST: {ssdp.GATEWAY}\r\nLocation: {url}\r\nEXT:\r\n\r\n".encode()


@pytest.mark.parametrize("url", ["http://192.168.9.1/", "http://192.168.9.1:5555/rootDesc.xml"])
def test_a_description_at_the_router(url: str) -> None:
    assert ssdp.read_location(answer(url), ROUTER) == url


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:22067/",
        "http://192.168.9.10/",
        "http://192.168.9.1.example.org/",
        "http://192.168.9.1@127.0.0.1/",
        "http://192.168.9.1:80@127.0.0.1/",
        "http://192x168x9x1/",
        "https://192.168.9.1/",
        "file:///etc/passwd",
        "http://192.168.9.1",
        "http://192.168.9.1:99999999/",
        "http://192.168.9.1/" + "a" * ssdp.MAX_URL,
        "http://192.168.9.1/ http://127.0.0.1/",
    ],
)
def test_nothing_elsewhere_is_asked_for(url: str) -> None:
    with pytest.raises(InputError):
        ssdp.read_location(answer(url), ROUTER)


def test_other_things_that_are_said() -> None:
    for data in (b"", answer("http://192.168.9.1/", "404 Not Found"), b"NOTIFY * HTTP/1.1\r\n\r\n", bytes(9000)):
        with pytest.raises(InputError):
            ssdp.read_location(data, ROUTER)


@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    for said in (data, answer("http://192.168.9.1/")[:40] + data, answer("http://192.168.9.1/a").replace(b"a", data)):
        with suppress(InputError):
            assert ssdp.read_location(said, ROUTER).startswith("http://192.168.9.1")


def test_the_question() -> None:
    assert ssdp.search().startswith(b"M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\n")
    assert ssdp.search("192.168.9.1").endswith(b"\r\n\r\n")
