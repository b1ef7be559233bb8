"""Streams over TCP, on raw trio sockets so that bulk data lands in the caller's buffer without a copy.

`trio.SocketStream.receive_some` builds a new bytes object per call, which costs two thirds of the throughput of an
encrypted bulk transfer; `recv_into` a reused buffer does not (see docs/architecture.md).
"""

from __future__ import annotations

import errno
import os
import socket as stdlib_socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv6Address, ip_address
from typing import Any

import structlog
import trio
from trio import socket

from p2psync.errors import InputError
from p2psync.net.addresses import Address, format_address, parse_address, parse_peer_address
from p2psync.net.congestion import FAR_US, FOR_LOSS, INFO_SIZE, LOOK_S, Info, LineWatch, read_info
from p2psync.ports import StreamListener

BACKLOG = 128
"""Connections the kernel may hold for us before `accept`."""

UNSENT_LOW_WATER = 256 * 1024
"""Bytes the kernel may hold unsent: small enough that a control message never queues behind seconds of bulk data. Who
gives it larger pieces, because the line is fast, may have two of them there."""

WORTH_WAITING = 64 * 1024
"""Bytes from which on the kernel is asked to wake us only when so many have come: a round of the event loop costs as
much as copying a few hundred KiB."""

_CAN_WAIT = sys.platform == "linux"
"""Whether epoll heeds SO_RCVLOWAT (socket(7), since Linux 2.6.28), and wakes us for less when its memory is full."""

_NAME_SIZE = 16
"""Bytes that the name of a congestion control has at most (TCP_CA_NAME_MAX of linux/tcp.h)."""
_OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_ACCEPT_PAUSE_S = 0.1
_KEEPALIVE_IDLE_S = 60
_KEEPALIVE_INTERVAL_S = 10
_KEEPALIVE_PROBES = 6

_log = structlog.get_logger(__name__)


class TcpStream:
    """A connected TCP socket as a `p2psync.ports.ByteStream`."""

    def __init__(self, sock: socket.SocketType, remote: str) -> None:
        """Take ownership of a connected socket; `remote` is the other side as HOST:PORT."""
        self._socket = sock
        self._remote = remote
        self._unsent = UNSENT_LOW_WATER
        self._wakes_at = 1
        _tune(sock)
        self._watch: LineWatch | None = None
        self._look_at = 0.0
        # The handshake has shown how far it is, to either side.
        if (info := _info(sock)) is not None and info.rtt_us >= FAR_US:
            with suppress(OSError):  # a kernel that does not offer it to everybody
                self._usual = self._control = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _NAME_SIZE)
                self._choose(FOR_LOSS)
                self._watch = LineWatch()

    @property
    def remote(self) -> str:
        """The other side's address as HOST:PORT ([HOST]:PORT for IPv6)."""
        return self._remote

    async def send_all(self, data: bytes | memoryview) -> None:
        """Send every byte. A cancelled call may have sent a part: only `aclose` makes sense after it.

        Raises:
            trio.BrokenResourceError: the other side or the network is gone.
            trio.ClosedResourceError: this side closed the stream, before or during the call.
        """
        with _translated(), memoryview(data).cast("B") as view:
            if not view:
                await trio.lowlevel.checkpoint()
            if len(view) >= WORTH_WAITING:
                self._allow_unsent(max(UNSENT_LOW_WATER, 2 * len(view)))
            sent = 0
            while sent < len(view):
                with view[sent:] as rest:
                    sent += await self._socket.send(rest)
            self._suit_line()

    async def receive_into(self, buffer: memoryview, at_least: int = 1) -> int:
        """Receive at least one byte into a non-empty `buffer`; 0 at the end of the stream.

        Where `at_least` is large, it waits for so many bytes, as far as the kernel has room for them.

        Raises:
            trio.BrokenResourceError: the connection was reset or timed out.
            trio.ClosedResourceError: this side closed the stream, before or during the call.
        """
        if not buffer.nbytes:
            raise ValueError("an empty buffer cannot tell data from the end of the stream")
        with _translated():
            if at_least < WORTH_WAITING or not _CAN_WAIT:
                self._wake_at(1)
                return await self._socket.recv_into(buffer)
            self._wake_at(at_least)
            while True:
                if (descriptor := self._socket.fileno()) < 0:
                    raise trio.ClosedResourceError("this stream was closed on our side")
                # To read first, as trio's own method does, would take what there is, however little.
                await trio.lowlevel.wait_readable(descriptor)
                with suppress(BlockingIOError):
                    return os.readv(descriptor, [buffer])

    def _suit_line(self) -> None:
        """Look now and then whether a far line is one that loses packets."""
        if self._watch is None or (now := trio.current_time()) < self._look_at:
            return
        self._look_at = now + LOOK_S
        if (info := _info(self._socket)) is not None:
            with suppress(OSError):  # broken meanwhile, which who sends next will see
                self._choose(FOR_LOSS if self._watch.loses(info) else self._usual)

    def _choose(self, control: bytes) -> None:
        if control != self._control:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, control)
            self._control = control

    def _wake_at(self, amount: int) -> None:
        if amount != self._wakes_at:
            self._socket.setsockopt(socket.SOL_SOCKET, stdlib_socket.SO_RCVLOWAT, amount)
            self._wakes_at = amount

    def _allow_unsent(self, amount: int) -> None:
        if amount != self._unsent and hasattr(socket, "TCP_NOTSENT_LOWAT"):
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, amount)
            self._unsent = amount

    async def aclose(self) -> None:
        """Close now; data the kernel already took is still delivered."""
        self._socket.close()
        await trio.lowlevel.checkpoint()


class TcpListener:
    """A listening TCP socket as a `p2psync.ports.StreamListener`."""

    def __init__(self, sock: socket.SocketType, addresses: list[str]) -> None:
        """Take ownership of a listening socket that is reachable at `addresses`."""
        self._socket = sock
        self._addresses = addresses

    @property
    def addresses(self) -> list[str]:
        """The addresses it really listens on; a dual-stack listener names 0.0.0.0 and [::]."""
        return list(self._addresses)

    async def accept(self) -> TcpStream:
        """Wait for the next connection; survives aborted connections and a lack of file descriptors.

        Raises:
            trio.ClosedResourceError: the listener was closed, before or during the call.
        """
        while True:
            try:
                sock, sockaddr = await self._socket.accept()
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES:
                    _log.warning("cannot accept connections for now", reason=str(error), retry_s=_ACCEPT_PAUSE_S)
                    await trio.sleep(_ACCEPT_PAUSE_S)
                elif _is_closed(error):
                    raise trio.ClosedResourceError("the listener is closed") from None
                # Anything else concerns one connection that died in the queue (accept(2), "Error handling").
                continue
            try:
                return TcpStream(sock, _sockaddr_text(sockaddr))
            except OSError:
                sock.close()

    async def aclose(self) -> None:
        """Stop listening; a pending `accept` raises trio.ClosedResourceError."""
        self._socket.close()
        await trio.lowlevel.checkpoint()


class TcpNetwork:
    """TCP over IPv4 and IPv6 as a `p2psync.ports.Network`."""

    async def listen(self, address: str) -> list[StreamListener]:
        """Listen on HOST:PORT; `:PORT` and `[::]:PORT` mean every interface, IPv4 and IPv6 on one socket.

        A host name that resolves to several addresses gives one listener for each.

        Raises:
            InputError: `address` is malformed.
            OSError: the address is in use, not ours, or the name does not resolve; the text names the address.
        """
        wanted = parse_address(address)
        if wanted.host in ("", "::"):
            await trio.lowlevel.checkpoint()
            return [_listen_everywhere(wanted)]
        infos = await _resolve(wanted)
        listeners: list[StreamListener] = []
        try:
            for family, sockaddr in infos:
                sock = _bound_socket(family, sockaddr, wanted, v6_only=True)
                listeners.append(TcpListener(sock, [_sockaddr_text(sock.getsockname())]))
        except OSError:
            for listener in listeners:
                await listener.aclose()
            raise
        return listeners

    async def dial(self, address: str) -> TcpStream:
        """Connect to HOST:PORT; a name's IPv4 and IPv6 addresses are tried side by side (RFC 8305).

        Raises:
            InputError: `address` is malformed, or names no host or port.
            OSError: it cannot be reached; the text names the address. The caller sets the timeout.
        """
        wanted = parse_peer_address(address)
        try:
            numbers = ip_address(wanted.host)
        except ValueError:
            return await _dial_name(wanted)
        family = socket.AF_INET if numbers.version == 4 else socket.AF_INET6
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            _delay_acknowledgements(sock)
            await sock.connect((wanted.host, wanted.port))
            return TcpStream(sock, _sockaddr_text(sock.getpeername()))
        except OSError as error:
            sock.close()
            raise _named(error, wanted) from error
        except BaseException:
            sock.close()
            raise

    async def meet(self, address: str, port: int) -> TcpStream:
        """Connect to IP:PORT from our own `port`, while the other side does the same from there.

        Two routers that let nobody in each take the other's first packet for an answer to their own (RFC 5382 section
        5, REQ-2); the two machines then open one connection together (RFC 9293 section 3.5, "simultaneous open").

        Raises:
            InputError: `address` is malformed, or no numbers.
            OSError: it cannot be reached, or is connected from this port already; the text names the address. The
                caller sets the timeout.
        """
        wanted = parse_peer_address(address)
        family, anywhere = _family(wanted)
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _share_port(sock)
            await sock.bind((anywhere, port))
            await sock.connect((wanted.host, wanted.port))
            return TcpStream(sock, _sockaddr_text(sock.getpeername()))
        except OSError as error:
            sock.close()
            raise _named(error, wanted) from error
        except BaseException:
            sock.close()
            raise


async def _dial_name(wanted: Address) -> TcpStream:
    try:
        stream = await trio.open_tcp_stream(wanted.host, wanted.port)
    except OSError as error:
        raise _named(_first_cause(error), wanted) from error
    try:
        return TcpStream(stream.socket, _sockaddr_text(stream.socket.getpeername()))
    except OSError as error:
        stream.socket.close()
        raise _named(error, wanted) from error


def _family(wanted: Address) -> tuple[int, str]:
    """Which protocol an address of numbers belongs to, and what every interface is called there."""
    try:
        version = ip_address(wanted.host).version
    except ValueError:
        raise InputError(f"{wanted} is a name; only an address of numbers can be met at") from None
    return (socket.AF_INET, "0.0.0.0") if version == 4 else (socket.AF_INET6, "::")  # noqa: S104


def _share_port(sock: socket.SocketType | stdlib_socket.socket) -> None:
    """Let further sockets of this user that ask for it connect from the same port."""
    if hasattr(socket, "SO_REUSEPORT"):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


def _listen_everywhere(wanted: Address) -> TcpListener:
    try:
        sock = _bound_socket(socket.AF_INET6, ("::", wanted.port), wanted, v6_only=False)
    except OSError as error:
        if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT):
            raise
        # A machine without IPv6: what is left of "every interface" is IPv4.
        sock = _bound_socket(socket.AF_INET, ("0.0.0.0", wanted.port), wanted, v6_only=False)  # noqa: S104
        return TcpListener(sock, [_sockaddr_text(sock.getsockname())])
    port = sock.getsockname()[1]
    return TcpListener(sock, [f"0.0.0.0:{port}", f"[::]:{port}"])


def _bound_socket(family: int, sockaddr: tuple[Any, ...], wanted: Address, *, v6_only: bool) -> socket.SocketType:
    """A listening socket, made with non-blocking system calls only; its errors name the address."""
    try:
        plain = stdlib_socket.socket(family, stdlib_socket.SOCK_STREAM)
    except OSError as error:
        raise _named(error, wanted) from error
    try:
        if os.name != "nt":
            # Lets a restarted node take its port back at once; on Windows the flag would let two nodes share it.
            plain.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_REUSEADDR, 1)
        if family == stdlib_socket.AF_INET6:
            plain.setsockopt(stdlib_socket.IPPROTO_IPV6, stdlib_socket.IPV6_V6ONLY, int(v6_only))
        plain.bind(sockaddr)
        plain.listen(BACKLOG)
        # Only now: while binding it would let a second node listen on the same port.
        _share_port(plain)
        _delay_acknowledgements(plain)  # what it accepts may have brought bytes already
        plain.setblocking(False)
        return socket.from_stdlib_socket(plain)
    except OSError as error:
        plain.close()
        raise _named(error, wanted) from error


async def _resolve(wanted: Address) -> list[tuple[int, tuple[Any, ...]]]:
    try:
        infos = await socket.getaddrinfo(
            wanted.host, wanted.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_ADDRCONFIG
        )
    except OSError as error:
        raise _named(error, wanted) from error
    return list(dict.fromkeys((int(info[0]), info[4]) for info in infos))


def _tune(sock: socket.SocketType) -> None:
    """Small messages go at once, dead peers are noticed, and little unsent data waits in the kernel."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    _delay_acknowledgements(sock)
    for name, value in (
        ("TCP_KEEPIDLE", _KEEPALIVE_IDLE_S),
        ("TCP_KEEPINTVL", _KEEPALIVE_INTERVAL_S),
        ("TCP_KEEPCNT", _KEEPALIVE_PROBES),
        ("TCP_NOTSENT_LOWAT", UNSENT_LOW_WATER),
    ):
        option = getattr(socket, name, None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def _delay_acknowledgements(sock: socket.SocketType | stdlib_socket.socket) -> None:
    """Have the kernel acknowledge with our answer what is answered at once (tcp(7), TCP_QUICKACK).

    Else each packet of a connection that begins is acknowledged by one of its own, which costs as much as a message.
    """
    if hasattr(socket, "TCP_QUICKACK"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)


def _info(sock: socket.SocketType) -> Info | None:
    """What the kernel says of a connection, where it can be told something about congestion, too."""
    if hasattr(socket, "TCP_CONGESTION") and hasattr(socket, "TCP_INFO"):
        with suppress(OSError):  # an old kernel
            return read_info(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, INFO_SIZE))
    return None


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if _is_closed(error):
            raise trio.ClosedResourceError("this stream was closed on our side") from None
        raise trio.BrokenResourceError(f"connection lost: {error.strerror or error}") from error


def _is_closed(error: OSError) -> bool:
    return error.errno in (errno.EBADF, errno.ENOTSOCK)


def _first_cause(error: OSError) -> OSError:
    """The system's own error behind trio's "all attempts to connect failed"."""
    cause: BaseException | None = error.__cause__
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    return cause if isinstance(cause, OSError) else error


def _named(error: OSError, address: Address) -> OSError:
    """The same error (errno and class), with a text that names the address."""
    if isinstance(error, stdlib_socket.gaierror):
        return stdlib_socket.gaierror(error.errno, f"cannot resolve {address}: {error.strerror}")
    if error.errno is None:
        return OSError(f"{address}: {error}")
    return OSError(error.errno, f"{os.strerror(error.errno)} ({address})")


def _sockaddr_text(sockaddr: tuple[Any, ...]) -> str:
    """HOST:PORT of a socket address; IPv4 on a dual-stack socket as IPv4, link-local IPv6 with its interface."""
    host, port = str(sockaddr[0]), int(sockaddr[1])
    if len(sockaddr) == 4:
        address = IPv6Address(host)
        if address.ipv4_mapped is not None:
            host = str(address.ipv4_mapped)
        elif sockaddr[3] and address.scope_id is None:
            host = f"{host}%{_interface_name(int(sockaddr[3]))}"
    return format_address(host, port)


def _interface_name(index: int) -> str:
    try:
        return stdlib_socket.if_indextoname(index)
    except OSError:
        return str(index)
