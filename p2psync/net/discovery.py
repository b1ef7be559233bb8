"""Finding devices on the local network by multicast DNS (RFC 6762, RFC 6763), as hints that prove nothing.

The library runs threads of its own; what it sees crosses to trio through bounded queues that drop the oldest entry.
Whatever it does wrong (no interface, no multicast, an exception, a hang) is logged and tried again later:
synchronisation over known addresses never depends on it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import structlog
import trio
import zeroconf

from p2psync.net.announcement import (
    SERVICE_TYPE,
    check_announcement,
    local_addresses,
    only_loopback,
    read_service_info,
    service_info,
)
from p2psync.net.backoff import Backoff
from p2psync.net.lossy import LossyQueue
from p2psync.ports import Rng, Sighting

MAX_CANDIDATES = 64
"""Announcers that are remembered at a time; a flood of forged ones displaces the oldest."""

_MAX_NAME_CHARS = 128
_RESOLVERS = 4
_RESOLVE_MS = 1500
_THREADS = 8
_CLOSE_S = 3.0
_CALL_S = 15.0
_INTERFACE_CHECK_S = 5.0
_REPEAT_S = 30.0

T = TypeVar("T")
_log = structlog.get_logger(__name__)


class MdnsDiscovery:
    """Announces this device and reports others, as a `p2psync.ports.Discovery`.

    Works while `run` runs. Announcements carry a random instance name and what the caller gives (an opaque tag, a
    nameplate), nothing that names a device, a person or a folder.
    """

    def __init__(self, rng: Rng, interfaces: Sequence[str] | None = None) -> None:
        """`interfaces`: IP addresses to use; None is every interface, IPv4 and IPv6, followed as they change."""
        self._interfaces = None if interfaces is None else list(interfaces)
        self._instance = f"{rng.token(12).hex()}.{SERVICE_TYPE}"
        self._backoff = Backoff(rng)
        self._sightings: LossyQueue[Sighting] = LossyQueue(MAX_CANDIDATES)
        self._candidates: OrderedDict[str, Sighting] = OrderedDict()
        self._wanted: tuple[int, str, str | None] | None = None
        self._changed = trio.Event()
        self._threads = trio.CapacityLimiter(_THREADS)

    def sightings(self) -> AsyncIterator[Sighting]:
        """Endless stream of hints; a device that stays is reported again every half minute."""
        return self._sightings

    async def announce(self, port: int, tag: str, pairing: str | None) -> None:
        """Announce (or update) this device at TCP `port`, as soon as `run` can. Never fails for the network's sake.

        Args:
            port: where this device accepts connections.
            tag: 1 to 64 characters of URL-safe base64, shown to everyone nearby.
            pairing: nameplate of an open pairing, 1 to 16 letters, digits or dashes.

        Raises:
            ValueError: other devices would refuse such an announcement.
        """
        check_announcement(port, tag, pairing)
        self._wanted = (port, tag, pairing)
        self._changed.set()
        await trio.lowlevel.checkpoint()

    async def run(self) -> None:
        """Browse and announce until cancelled, starting over after a failure and when the interfaces change."""
        while True:
            failure: BaseException | None = None
            try:
                await self._session()
            except* Exception as group:  # noqa: BLE001 - the library's errors are many, and none may stop the node
                failure = _innermost(group)
            if failure is None:
                _log.info("network interfaces changed: local discovery starts over")
                continue
            delay = self._backoff.failed()
            reason = str(failure) or type(failure).__name__
            _log.warning("local discovery is not available for now", reason=reason, retry_s=round(delay, 1))
            await trio.sleep(delay)

    async def _session(self) -> None:
        """One life of the library on the interfaces of now; returns when they have changed."""
        library = _Library(self._interfaces)
        found: LossyQueue[tuple[str, bool]] = LossyQueue(4 * MAX_CANDIDATES)
        self._candidates.clear()
        local = await self._call(partial(local_addresses, self._interfaces))
        if not local:
            raise OSError("there is no network interface")
        try:
            responder = await self._call(library.open)
            handler = self._browser_callback(found, trio.lowlevel.current_trio_token())
            await self._call(partial(zeroconf.ServiceBrowser, responder, SERVICE_TYPE, handlers=[handler]))
            async with trio.open_nursery() as nursery:
                for _ in range(_RESOLVERS):
                    nursery.start_soon(self._resolve, responder, found, only_loopback(local))
                nursery.start_soon(self._announce, responder, local)
                nursery.start_soon(self._repeat)
                await self._interfaces_changed(local)
                nursery.cancel_scope.cancel()
        finally:
            # The goodbye packets are a courtesy: when the library hangs, its daemon threads are left behind.
            with trio.move_on_after(_CLOSE_S, shield=True):
                await trio.to_thread.run_sync(library.close, abandon_on_cancel=True)

    async def _interfaces_changed(self, local: list[str]) -> None:
        """Return once this machine's addresses are not `local` any more."""
        # Polled, as no portable system call tells of it.
        while await self._call(partial(local_addresses, self._interfaces)) == local:  # noqa: ASYNC110
            await trio.sleep(_INTERFACE_CHECK_S)

    async def _announce(self, responder: zeroconf.Zeroconf, local: list[str]) -> None:
        """Keep the announcement what the caller wants."""
        publish: Callable[[zeroconf.ServiceInfo], None] = responder.register_service
        while True:
            self._changed = trio.Event()
            if self._wanted is not None:
                await self._call(partial(publish, service_info(self._instance, local, *self._wanted)))
                publish = responder.update_service
                self._backoff.succeeded()
                _log.debug("announced on the local network", port=self._wanted[0], addresses=local)
            await self._changed.wait()

    def _browser_callback(
        self, found: LossyQueue[tuple[str, bool]], token: trio.lowlevel.TrioToken
    ) -> Callable[..., None]:
        """What the library calls, on a thread of its own, when a service appears, changes or goes."""

        def changed(name: str, state_change: zeroconf.ServiceStateChange, **_rest: Any) -> None:
            if len(name) <= _MAX_NAME_CHARS and name.lower() != self._instance:
                found.put_from_thread((name, state_change is not zeroconf.ServiceStateChange.Removed), token)

        return changed

    async def _resolve(self, responder: zeroconf.Zeroconf, found: LossyQueue[tuple[str, bool]], loopback: bool) -> None:
        """Turn names into sightings, one at a time."""
        while True:
            name, present = await found.get()
            if not present:
                self._candidates.pop(name, None)
                continue
            try:
                info = await self._call(partial(_lookup, responder, name))
                sighting = read_service_info(info, loopback=loopback)
            except (zeroconf.Error, ValueError) as error:
                _log.debug("ignored an announcement", name=name, reason=str(error))
                continue
            self._remember(name, sighting)

    def _remember(self, name: str, sighting: Sighting) -> None:
        self._candidates[name] = sighting
        self._candidates.move_to_end(name)
        if len(self._candidates) > MAX_CANDIDATES:
            self._candidates.popitem(last=False)
        self._sightings.put(sighting)

    async def _repeat(self) -> None:
        """Report again what is still announced: the listener may have failed to connect the first time."""
        while True:
            await trio.sleep(_REPEAT_S)
            for sighting in self._candidates.values():
                self._sightings.put(sighting)

    async def _call(self, work: Callable[[], T]) -> T:
        """Run a blocking call of the library in a thread; trio.TooSlowError when it hangs."""
        with trio.fail_after(_CALL_S):
            return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._threads)


class _Library:
    """Owns one `zeroconf.Zeroconf`, so that it is closed exactly once even if opening it outlives our patience."""

    def __init__(self, interfaces: list[str] | None) -> None:
        self._interfaces = interfaces
        self._opened: list[zeroconf.Zeroconf] = []
        self._closed = False

    def open(self) -> zeroconf.Zeroconf:
        """Open the multicast sockets (blocking)."""
        responder = self._make()
        self._opened.append(responder)
        if self._closed:
            self.close()
        return responder

    def close(self) -> None:
        """Say goodbye and close (blocking); an opening that is still under way closes itself when it is done."""
        self._closed = True
        while self._opened:
            # `pop` is atomic, so of two threads here only one gets it.
            try:
                responder = self._opened.pop()
            except IndexError:
                return
            responder.close()

    def _make(self) -> zeroconf.Zeroconf:
        if self._interfaces is not None:
            return zeroconf.Zeroconf(interfaces=self._interfaces, use_asyncio=False)
        try:
            return zeroconf.Zeroconf(ip_version=zeroconf.IPVersion.All, use_asyncio=False)
        except OSError:
            return zeroconf.Zeroconf(ip_version=zeroconf.IPVersion.V4Only, use_asyncio=False)


def _lookup(responder: zeroconf.Zeroconf, name: str) -> zeroconf.ServiceInfo:
    """All that is known of a service, asking the network for what is missing (blocking)."""
    info = zeroconf.ServiceInfo(SERVICE_TYPE, name)
    if not info.load_from_cache(responder) and not info.request(responder, _RESOLVE_MS):
        raise ValueError("it does not answer")
    return info


def _innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
