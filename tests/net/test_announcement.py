"""Announcements: ours are read back, and hostile ones are refused or cut to size."""

import ipaddress
from collections.abc import Mapping

import pytest
import zeroconf
from hypothesis import given
from hypothesis import strategies as st

from p2psync.net.announcement import (
    MAX_ADDRESSES,
    SERVICE_TYPE,
    check_announcement,
    local_addresses,
    only_loopback,
    read_service_info,
    service_info,
)
from p2psync.ports import Sighting

INSTANCE = f"0123456789abcdef.{SERVICE_TYPE}"
GOOD: dict[bytes, bytes | None] = {b"v": b"1", b"t": b"tag_-="}
TAGS = st.from_regex(r"[A-Za-z0-9_=-]{1,64}", fullmatch=True)
NAMEPLATES = st.none() | st.from_regex(r"[A-Za-z0-9-]{1,16}", fullmatch=True)


def foreign(
    properties: Mapping[bytes, bytes | None] | bytes = GOOD,
    port: int | None = 1,
    addresses: tuple[str, ...] = ("192.0.2.1",),
) -> zeroconf.ServiceInfo:
    text = properties if isinstance(properties, bytes) else dict(properties)
    return zeroconf.ServiceInfo(
        SERVICE_TYPE, INSTANCE, port=port, properties=text, server="x.local.", parsed_addresses=list(addresses)
    )


@given(TAGS, NAMEPLATES, st.integers(1, 65535), st.ip_addresses(v=4).filter(lambda ip: ip.is_global or ip.is_private))
def test_what_we_announce_is_read_back(tag: str, pairing: str | None, port: int, ip: ipaddress.IPv4Address) -> None:
    check_announcement(port, tag, pairing)
    info = service_info(INSTANCE, [str(ip)], port, tag, pairing)
    if ip.is_multicast or ip.is_unspecified or str(ip) == "255.255.255.255":
        with pytest.raises(ValueError, match="address"):
            read_service_info(info, loopback=True)
    else:
        assert read_service_info(info, loopback=True) == Sighting((f"{ip}:{port}",), tag, pairing)


def test_the_announcement_names_nobody() -> None:
    info = service_info(INSTANCE, ["192.0.2.1"], 22067, "opaque", "nameplate")
    assert info.text == b"\x03v=1\x08t=opaque\x0bp=nameplate"
    assert info.server == "0123456789abcdef.local."


@pytest.mark.parametrize(
    ("port", "tag", "pairing"),
    [(0, "t", None), (65536, "t", None), (1, "", None), (1, "t" * 65, None), (1, "t t", None), (1, "t\n", None),
     (1, "ü", None), (1, "t", ""), (1, "t", "a" * 17), (1, "t", "a_b"), (1, "t", "a\n")],
)  # fmt: skip
def test_we_do_not_announce_what_others_refuse(port: int, tag: str, pairing: str | None) -> None:
    with pytest.raises(ValueError, match=r"port|tag|nameplate"):
        check_announcement(port, tag, pairing)


@pytest.mark.parametrize(
    ("properties", "why"),
    [
        ({}, "version"),
        ({b"v": b"2", b"t": b"x"}, "version"),
        ({b"v": None, b"t": b"x"}, "version"),
        ({b"v": b"1"}, "tag"),
        ({b"v": b"1", b"t": None}, "tag"),
        ({b"v": b"1", b"t": b""}, "tag"),
        ({b"v": b"1", b"t": b"x" * 65}, "tag"),
        ({b"v": b"1", b"t": b"x\0"}, "tag"),
        ({b"v": b"1", b"t": b"x\n"}, "tag"),
        ({b"v": b"1", b"t": b"\xff"}, "tag"),
        (GOOD | {b"p": b""}, "nameplate"),
        (GOOD | {b"p": b"n" * 17}, "nameplate"),
        (GOOD | {b"p": b"\x1b[2J"}, "nameplate"),
        (GOOD | {bytes([65 + n]): b"x" * 200 for n in range(5)}, "too long"),
    ],
)
def test_hostile_text_is_refused(properties: dict[bytes, bytes | None], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_service_info(foreign(properties), loopback=False)


def test_entries_we_do_not_know_are_ignored() -> None:
    assert read_service_info(foreign(GOOD | {b"later": b"version"}), loopback=False).tag == "tag_-="


@pytest.mark.parametrize("port", [None, 0])
def test_no_port_no_sighting(port: int | None) -> None:
    with pytest.raises(ValueError, match="port"):
        read_service_info(foreign(port=port), loopback=False)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "::", "224.0.0.251", "ff02::fb", "255.255.255.255", "fe80::1",
     "::ffff:127.0.0.1"],
)  # fmt: skip
def test_addresses_that_lead_nowhere_or_back_to_us_are_dropped(address: str) -> None:
    with pytest.raises(ValueError, match="address"):
        read_service_info(foreign(addresses=(address,)), loopback=False)
    assert read_service_info(foreign(addresses=(address, "192.0.2.1")), loopback=False).addresses == ("192.0.2.1:1",)


def test_loopback_is_allowed_where_there_is_nothing_else() -> None:
    sighting = read_service_info(foreign(addresses=("127.0.0.1", "::1")), loopback=True)
    assert sighting.addresses == ("127.0.0.1:1", "[::1]:1")


def test_addresses_are_bounded() -> None:
    many = tuple(f"10.0.{n // 250}.{n % 250 + 1}" for n in range(500))
    assert len(read_service_info(foreign(addresses=many), loopback=False).addresses) == MAX_ADDRESSES
    assert len(service_info(INSTANCE, many, 1, "t", None).parsed_addresses()) == MAX_ADDRESSES


def test_local_addresses_are_real_and_reachable_ones_come_first() -> None:
    addresses = [ipaddress.ip_address(address) for address in local_addresses()]
    assert addresses
    assert [ip.is_link_local for ip in addresses] == sorted(ip.is_link_local for ip in addresses)
    assert only_loopback(local_addresses()) or not any(ip.is_loopback for ip in addresses)
    assert local_addresses(["192.0.2.1"]) == ["192.0.2.1"]


def test_only_loopback() -> None:
    assert only_loopback(["127.0.0.1", "::1"])
    assert not only_loopback(["127.0.0.1", "192.0.2.1"])
