"""What anybody on the network can send: frames of a channel, announcements, addresses."""

from __future__ import annotations

import re
import socket
from collections.abc import Coroutine
from ipaddress import IPv4Address
from typing import TypeVar

import msgspec
import zeroconf

from p2psync.crypto.handshake import Established
from p2psync.crypto.transport import SealingCipher
from p2psync.errors import ConnectionLost, InputError, ProtocolError, Unreachable
from p2psync.net.addresses import format_address, is_link_local, parse_address, parse_peer_address
from p2psync.net.announcement import MAX_ADDRESSES, SERVICE_TYPE, check_announcement, read_service_info, service_info
from p2psync.net.channel import MAX_CHANNEL_FRAME, SecureChannel
from p2psync.node.contacts import via
from p2psync.protocol import natpmp, ssdp
from tests.fuzz.rules import Target
from tests.fuzz.targets.signed import AUTHOR

T = TypeVar("T")


class Bytes:
    """A stream that has said all it will say, in pieces of at most `size` bytes."""

    remote = "fuzz:1"

    def __init__(self, data: bytes, size: int) -> None:
        self._data = data
        self._size = size
        self.sent = bytearray()

    async def receive_into(self, buffer: memoryview, at_least: int = 1) -> int:
        piece = self._data[: min(self._size, len(buffer))]
        self._data = self._data[len(piece) :]
        buffer[: len(piece)] = piece
        return len(piece)

    async def send_all(self, data: bytes | memoryview) -> None:
        self.sent += data

    async def aclose(self) -> None:
        pass


def at_once(work: Coroutine[object, None, T]) -> T:
    """The result of a coroutine that never waits; without an event loop, for speed."""
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("it waits")


# ── the channel ─────────────────────────────────────────────────────────────────────────────────────────────────────
_FRAMES = msgspec.msgpack.Decoder(tuple[int, list[bytes], list[tuple[int, bytes]]])
_ESTABLISHED = Established(AUTHOR.card, b"", bytes(32), bytes(32), bytes(32), True)


def feed_channel(data: bytes) -> None:
    """Frames sealed with the right key, then sent in any order, changed, cut, repeated or made up.

    Whatever arrives intact is the beginning of what was sent.
    """
    try:
        size, frames, script = _FRAMES.decode(data)
    except (msgspec.MsgspecError, ValueError):
        size, frames, script = 7, [], [(-1, data)]
    cipher, sealed = SealingCipher(bytes(32)), list[bytes]()
    for frame in frames[:32]:
        out = bytearray(len(frame) + 20)
        cipher.seal_into([frame], memoryview(out))
        sealed.append(bytes(out))
    wire = b"".join(sealed[at] if 0 <= at < len(sealed) else extra for at, extra in script[:64])
    channel = SecureChannel(Bytes(wire, max(1, size % 70_000)), _ESTABLISHED, b"")
    got = 0
    while True:
        plain = at_once(channel.receive())
        assert bytes(plain) == frames[got]
        got += 1


def _channel_seeds() -> list[bytes]:
    frames = [b"", b"one", b"t" * 300, b"\0" * 900]
    whole = [(at, b"") for at in range(len(frames))]
    impossible = (MAX_CHANNEL_FRAME + 1).to_bytes(4, "big")
    return [
        msgspec.msgpack.encode((size, frames, script))
        for size in (1, 7, 60_000)
        for script in (
            whole,
            whole[1:],
            [*whole[:2], whole[1]],
            [whole[0], (-1, impossible)],
            [(-1, bytes(24)), *whole],
        )
    ] + [impossible, bytes(3)]


# ── announcements ───────────────────────────────────────────────────────────────────────────────────────────────────
_INSTANCE = f"0123456789abcdef.{SERVICE_TYPE}"
_INFO = msgspec.msgpack.Decoder(tuple[bytes, int, list[bytes]])


def feed_announcement(data: bytes) -> None:
    """TXT entries, port and addresses of a service, as the library hands them over."""
    try:
        text, port, addresses = _INFO.decode(data)
    except (msgspec.MsgspecError, ValueError):
        text, port, addresses = data, 1, [b"\xc0\x00\x02\x01"]
    packed = [address for address in addresses if len(address) in {4, 16}]
    info = zeroconf.ServiceInfo(
        SERVICE_TYPE, _INSTANCE, port=port % 70_000, properties=text, server="x.local.", addresses=packed
    )
    for loopback in (False, True):
        sighting = read_service_info(info, loopback=loopback)
        assert 1 <= len(sighting.addresses) <= MAX_ADDRESSES
        for address in sighting.addresses:
            parse_peer_address(address)
        check_announcement(port % 70_000, sighting.tag, sighting.pairing)


def _announcement_seeds() -> list[bytes]:
    addresses = [socket.inet_aton("192.0.2.1"), socket.inet_pton(socket.AF_INET6, "2001:db8::1"), bytes(4), bytes(16)]
    texts = [service_info(_INSTANCE, ["192.0.2.1"], 1, "tag", pairing).text for pairing in (None, "7", "nameplate")]
    return [msgspec.msgpack.encode((text or b"", 22067, addresses)) for text in (*texts, b"\x03v=1\x00\xff")]


# ── addresses ───────────────────────────────────────────────────────────────────────────────────────────────────────
def feed_address(data: bytes) -> None:
    """HOST:PORT as people type it and peers tell it."""
    text = data.decode("utf-8", "surrogateescape")
    via(text)
    address = parse_address(text)
    is_link_local(address.host)
    assert parse_address(format_address(address.host, address.port)) == address
    parse_peer_address(text)


_ADDRESSES = [b"192.0.2.7:22067", b"[2001:db8::1]:1", b"[fe80::1%eth0]:22067", b":0", b"a.example.org.:65535", b"x:1"]


# ── the router ──────────────────────────────────────────────────────────────────────────────────────────────────────
_ROUTER = IPv4Address("192.168.9.1")


def feed_gateway(data: bytes) -> None:
    """An answer to NAT-PMP, or, when the first byte is odd, to a search by UPnP."""
    if data[:1] and data[0] % 2:
        url = ssdp.read_location(data[1:], _ROUTER)
        assert re.match(rf"http://{_ROUTER}[:/]", url)
        assert len(url) <= ssdp.MAX_URL
        return
    answer = natpmp.read_answer(data[1:])
    if isinstance(answer, natpmp.MappedPort):
        assert natpmp.ask_port(answer.inside, answer.outside, answer.lifetime_s)


def _gateway_seeds() -> list[bytes]:
    natpmp_answers = ("00800000000000010b000102", "00820000000000015633563300000e10", "0082000200000001")
    head = "HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\nST: upnp:rootdevice\r\nEXT:\r\n"
    urls = ("http://192.168.9.1:5555/rootDesc.xml", "http://192.168.9.1/", "http://127.0.0.1/", "http://192.168.9.1@x/")
    return [b"\0" + bytes.fromhex(text) for text in natpmp_answers] + [
        f"\1{head}LOCATION: {url}\r\n\r\n".encode() for url in urls
    ]


TARGETS = (
    Target("channel", feed_channel, (ProtocolError, ConnectionLost), _channel_seeds, "msgpack"),
    Target("announcement", feed_announcement, (ValueError,), _announcement_seeds, "msgpack"),
    Target("gateway", feed_gateway, (InputError, Unreachable), _gateway_seeds, "bytes"),
    Target("address", feed_address, (InputError,), lambda: _ADDRESSES, "text"),
)
