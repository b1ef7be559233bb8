"""TCP streams on loopback: addresses, bulk data, and the errors that the port promises."""

import errno
import itertools
import os
import socket as stdlib_socket
from pathlib import Path
from typing import Any

import pytest
import trio
from trio import socket

from p2psync.errors import InputError
from p2psync.net import tcp
from p2psync.net.congestion import FAR_US, FOR_LOSS, LOOK_S, SHOWN, Info, LineWatch, read_info
from p2psync.net.tcp import WORTH_WAITING, TcpListener, TcpNetwork, TcpStream
from p2psync.ports import ByteStream, StreamListener


def has_ipv6() -> bool:
    try:
        with stdlib_socket.socket(stdlib_socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")


async def connected(
    listen: str = "127.0.0.1:0", dial_host: str = "127.0.0.1"
) -> tuple[TcpListener, TcpStream, TcpStream]:
    network = TcpNetwork()
    [listener] = await network.listen(listen)
    port = listener.addresses[0].rpartition(":")[2]
    near: list[TcpStream] = []

    async def dial() -> None:
        near.append(await network.dial(f"{dial_host}:{port}"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dial)
        far = await listener.accept()
    assert isinstance(listener, TcpListener)
    assert isinstance(far, TcpStream)
    return listener, near[0], far


async def close(*things: StreamListener | ByteStream) -> None:
    for thing in things:
        await thing.aclose()


async def receive_all(stream: TcpStream) -> bytes:
    received = bytearray()
    buffer = memoryview(bytearray(1 << 20))
    while count := await stream.receive_into(buffer):
        received += buffer[:count]
    return bytes(received)


async def test_bulk_data_arrives_whole_in_both_directions() -> None:
    listener, near, far = await connected()
    data = os.urandom(8 << 20)
    results: dict[str, bytes] = {}

    async def send(stream: TcpStream) -> None:
        await stream.send_all(memoryview(data))
        await stream.send_all(b"")
        stream._socket.shutdown(socket.SHUT_WR)

    async def receive(name: str, stream: TcpStream) -> None:
        results[name] = await receive_all(stream)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for name, stream in (("near", near), ("far", far)):
                nursery.start_soon(send, stream)
                nursery.start_soon(receive, name, stream)
    assert results == {"near": data, "far": data}
    await close(listener, near, far)


async def test_socket_options() -> None:
    listener, near, far = await connected()
    for stream in (near, far):
        assert stream._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert stream._socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            assert stream._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 256 * 1024
    await close(listener, near, far)


@pytest.mark.parametrize("listen", [":0", "[::]:0"])
@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("[::1]", marks=needs_ipv6)])
async def test_every_interface_is_dual_stack(listen: str, host: str) -> None:
    listener, near, far = await connected(listen, host)
    assert near.remote == f"{host}:{listener.addresses[0].rpartition(':')[2]}"
    assert far.remote.startswith(f"{host}:")
    if has_ipv6():
        assert [address.rpartition(":")[0] for address in listener.addresses] == ["0.0.0.0", "[::]"]
    await close(listener, near, far)


async def test_without_ipv6_every_interface_means_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    real = tcp._bound_socket

    def no_ipv6(family: int, *args: Any, **kwargs: Any) -> socket.SocketType:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "no IPv6")
        return real(family, *args, **kwargs)

    monkeypatch.setattr(tcp, "_bound_socket", no_ipv6)
    [listener] = await TcpNetwork().listen(":0")
    assert listener.addresses[0].startswith("0.0.0.0:")
    await listener.aclose()


async def test_a_name_gives_a_listener_for_each_of_its_addresses() -> None:
    listeners = await TcpNetwork().listen("localhost:0")
    hosts = {address.rpartition(":")[0] for listener in listeners for address in listener.addresses}
    assert hosts
    assert hosts <= {"127.0.0.1", "[::1]"}
    await close(*listeners)


@pytest.mark.parametrize("listen", ["127.0.0.1", ""])
async def test_port_in_use_names_the_address(listen: str) -> None:
    network = TcpNetwork()
    [listener] = await network.listen(f"{listen}:0")
    address = f"{listen}:{listener.addresses[0].rpartition(':')[2]}"
    with pytest.raises(OSError, match=f"in use.*{address}") as caught:
        await network.listen(address)
    assert caught.value.errno == errno.EADDRINUSE
    await listener.aclose()
    [again] = await network.listen(address)
    await again.aclose()


async def test_dial_errors_keep_their_class_and_name_the_address() -> None:
    network = TcpNetwork()
    [listener] = await network.listen("127.0.0.1:0")
    [address] = listener.addresses
    await listener.aclose()
    with pytest.raises(ConnectionRefusedError, match=address):
        await network.dial(address)
    with pytest.raises(OSError, match=r"no-such-host\.invalid:1"):
        await network.dial("no-such-host.invalid:1")
    with pytest.raises(OSError, match=r"cannot resolve no-such-host\.invalid:1|no-such-host"):
        await network.listen("no-such-host.invalid:1")
    for bad in ("nonsense", ":1", "host:0"):
        with pytest.raises(InputError):
            await network.dial(bad)


async def test_who_waits_for_much_is_woken_when_it_is_there() -> None:
    listener, near, far = await connected()
    data, buffer = os.urandom(3 * WORTH_WAITING), memoryview(bytearray(4 * WORTH_WAITING))
    counts: list[int] = []

    async def receive() -> None:
        counts.append(await far.receive_into(buffer, 2 * WORTH_WAITING))

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await near.send_all(data[:1000])
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert not counts
            await near.send_all(data[1000:])
        assert counts[0] >= 2 * WORTH_WAITING
        while sum(counts) < len(data):
            counts.append(await far.receive_into(buffer[sum(counts) :]))
        assert buffer[: len(data)] == data
        await near.send_all(b"the end")
        await near.aclose()
        assert await far.receive_into(buffer, WORTH_WAITING) == 7
        assert await far.receive_into(buffer, WORTH_WAITING) == 0
    await close(listener, far)


async def test_what_never_fits_into_the_kernel_is_not_waited_for() -> None:
    listener, near, far = await connected()
    buffer = memoryview(bytearray(1 << 28))
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(near.send_all, bytes(1 << 26))
            assert await far.receive_into(buffer, 1 << 28) > 0
            nursery.cancel_scope.cancel()
    await close(listener, near, far)


@pytest.mark.parametrize("at_least", [1, WORTH_WAITING])
async def test_closing_wakes_waiters_with_closed(at_least: int) -> None:
    listener, near, far = await connected()

    async def expect_closed(wait: object) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await wait  # type: ignore[misc]

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_closed, listener.accept())
            nursery.start_soon(expect_closed, near.receive_into(memoryview(bytearray(at_least)), at_least))
            await trio.testing.wait_all_tasks_blocked()
            await close(listener, near)
    waiting = near.receive_into(memoryview(bytearray(at_least)), at_least)
    for late in (listener.accept(), waiting, near.send_all(b"x")):
        await expect_closed(late)
    await close(far, near)


async def test_a_reset_is_broken() -> None:
    listener, near, far = await connected()
    # A zero linger turns close into a reset.
    far._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    await far.aclose()
    with trio.fail_after(5):
        with pytest.raises(trio.BrokenResourceError, match="connection lost"):
            await near.receive_into(memoryview(bytearray(9)))
        with pytest.raises(trio.BrokenResourceError):
            await near.send_all(b"x" * (64 << 20))
    await close(listener, near)


async def test_an_empty_buffer_is_refused() -> None:
    listener, near, far = await connected()
    with pytest.raises(ValueError, match="empty buffer"):
        await near.receive_into(memoryview(b""))
    await close(listener, near, far)


async def test_accept_survives_aborted_connections_and_lack_of_descriptors(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    [listener] = await TcpNetwork().listen("127.0.0.1:0")
    assert isinstance(listener, TcpListener)
    failures = [errno.ECONNABORTED, errno.EMFILE, errno.EMFILE, errno.EBADF]

    async def accept() -> object:
        await trio.lowlevel.checkpoint()
        raise OSError(failures.pop(0), "injected")

    class Failing:
        pass

    failing = Failing()
    failing.accept = accept  # type: ignore[attr-defined]
    real, listener._socket = listener._socket, failing  # type: ignore[assignment]
    start = trio.current_time()
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()
    assert failures == []
    assert trio.current_time() - start == pytest.approx(0.2)
    listener._socket = real
    await listener.aclose()


@needs_ipv6
async def test_link_local_remote_keeps_its_interface() -> None:
    interface = next(
        (line.split() for line in Path("/proc/net/if_inet6").read_text().splitlines() if line.split()[3] == "20"), None
    )
    if interface is None:
        pytest.skip("no interface here has a link-local IPv6 address")
    raw, name = interface[0], interface[5]
    host = stdlib_socket.inet_ntop(stdlib_socket.AF_INET6, bytes.fromhex(raw)) + f"%{name}"
    listener, near, far = await connected(f"[{host}]:0", f"[{host}]")
    assert listener.addresses[0].startswith(f"[{host}]:")
    assert near.remote == listener.addresses[0]
    assert far.remote.startswith(f"[{host}]:")
    await close(listener, near, far)


async def test_a_name_cannot_be_met_at() -> None:
    with pytest.raises(InputError, match="only an address of numbers"):
        await TcpNetwork().meet("localhost:80", 0)


@needs_ipv6
async def test_meeting_over_ipv6() -> None:
    network = TcpNetwork()
    [ours], [theirs] = await network.listen("[::1]:0"), await network.listen("[::]:0")
    port = int(ours.addresses[0].rpartition(":")[2])
    with trio.fail_after(5):
        near = await network.meet(f"[::1]:{theirs.addresses[1].rpartition(':')[2]}", port)
        far = await theirs.accept()
    assert far.remote == f"[::1]:{port}"
    await close(near, far, ours, theirs)


async def test_a_port_that_was_met_from_can_be_listened_on_again() -> None:
    """One connection is over, which the kernel remembers for a while (TIME_WAIT), and one is not."""
    network = TcpNetwork()
    [ours], [theirs], [others] = [await network.listen("127.0.0.1:0") for _ in range(3)]
    port = int(ours.addresses[0].rpartition(":")[2])
    with trio.fail_after(5):
        over, stays = [await network.meet(listener.addresses[0], port) for listener in (theirs, others)]
        accepted = [await listener.accept() for listener in (theirs, others)]
    await over.aclose()
    await ours.aclose()
    [again] = await network.listen(f"127.0.0.1:{port}")
    await close(again, theirs, others, stays, *accepted)


# ── far paths ───────────────────────────────────────────────────────────────────────────────────────────────────────
AVAILABLE = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")


@pytest.mark.skipif(not AVAILABLE.exists() or "bbr" not in AVAILABLE.read_text(), reason="this kernel offers no BBR")
@pytest.mark.parametrize(("is_far", "is_lossy"), [(True, True), (True, False), (False, True)])
async def test_far_lines_are_given_what_copes_with_loss_until_they_have_shown_none(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.abc.Clock, is_far: bool, is_lossy: bool
) -> None:
    sent = itertools.count(step=SHOWN // 6)

    def info(_: object) -> Info:
        return Info(FAR_US if is_far else FAR_US - 1, (count := next(sent)) // 100 * is_lossy, FAR_US, count)

    def used(stream: TcpStream) -> bytes:
        return stream._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")

    with stdlib_socket.socket() as plain:
        usual = plain.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")
    monkeypatch.setattr(tcp, "_info", info)
    listener, near, far = await connected()
    assert used(near) == used(far) == (FOR_LOSS if is_far else usual)
    for _ in range(8):
        await near.send_all(b"x")
        await trio.sleep(LOOK_S)
    assert used(near) == (FOR_LOSS if is_far and is_lossy else usual)
    assert used(far) == (FOR_LOSS if is_far else usual), "each side for what it sends"
    await close(listener, near, far)


async def test_a_kernel_without_it_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "FOR_LOSS", b"none such")
    monkeypatch.setattr(tcp, "_info", lambda _: Info(FAR_US, 100, FAR_US, SHOWN))
    listener, near, far = await connected()
    await near.send_all(b"x")
    assert await far.receive_into(memoryview(bytearray(1))) == 1
    await close(listener, near, far)


async def test_the_kernel_says_how_far_it_is() -> None:
    listener, near, far = await connected()
    await near.send_all(bytes(100_000))
    info = tcp._info(near._socket)
    assert info is not None
    assert 0 < info.least_rtt_us < 1_000_000
    assert 0 < info.rtt_us < 1_000_000
    assert info.retransmitted == 0
    assert 0 < info.sent <= 1000
    await close(listener, near, far)


def test_what_a_full_queue_drops_is_no_loss_of_the_line() -> None:
    watch = LineWatch()
    assert watch.loses(Info(100_000, 0, 100_000, SHOWN - 1)), "who knows"
    assert not watch.loses(Info(200_000, 500, 100_000, SHOWN)), "the line is full"
    assert not watch.loses(Info(100_000, 502, 100_000, SHOWN)), "too little to tell"
    assert watch.loses(Info(100_000, 503, 100_000, SHOWN))
    assert not watch.loses(Info(100_000, 503, 100_000, 1000 * SHOWN)), "long ago"
    assert read_info(b"short") is None
