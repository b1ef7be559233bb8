"""A port of the router that leads to this node, kept open while the node runs and taken back when it stops."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Final

import trio

from p2psync.errors import Unreachable
from p2psync.net.addresses import parse_address
from p2psync.net.backoff import Backoff
from p2psync.node.logs import get_logger
from p2psync.ports import PortMapper, PortMapping, World
from p2psync.sync.pulse import Pulse

LIFETIME_S: Final = 3600
"""Asked for; it is renewed at half of what the router gives."""
SHORTEST_S: Final = 60.0
"""Between two renewals, whatever the router says."""
AGAIN_S: Final = (60.0, 3600.0)
"""Back-off after the router did not."""
_GOODBYE_S: Final = 3.0

_log = get_logger(__name__)


class OpenPort:
    """What the router does for this node. A router that does nothing is no error: most devices live behind one."""

    def __init__(self, world: World, mapper: PortMapper) -> None:
        self.mapping: PortMapping | None = None
        self.why_not = "it was not asked for yet; a device in no account has nobody to tell"
        self.changed = Pulse()
        """Fires when `address` has changed."""
        self._world = world
        self._mapper = mapper

    @property
    def address(self) -> str | None:
        """Where others reach this node through the router, IP:PORT; None when there is no such way."""
        return self.mapping.address if self.mapping is not None else None

    async def run(self, port: int) -> None:
        """Keep a port open that leads to ours, until cancelled; then give it back."""
        backoff = Backoff(self._world.rng, *AGAIN_S)
        wanted, expires = port, 0.0
        try:
            while True:
                began = trio.current_time()
                try:
                    mapping = await self._map(port, wanted)
                except Unreachable as error:
                    self._set(self.mapping if began < expires else None, str(error))
                    _log.debug("the router opens no port", error=str(error))
                    pause = backoff.failed()
                else:
                    backoff.succeeded()
                    self._set(mapping, "")
                    wanted = parse_address(mapping.address).port
                    expires = began + mapping.lifetime_s
                    pause = max(mapping.lifetime_s / 2, SHORTEST_S)
                await trio.sleep(pause)
        finally:
            last, self.mapping = self.mapping, None
            if last is not None:
                await self._give_back(last)

    async def _map(self, port: int, wanted: int) -> PortMapping:
        mapping = await self._mapper.map(port, wanted, LIFETIME_S)
        if not ip_address(parse_address(mapping.address).host).is_global:
            why_not = f"the router is behind another one: its own address is {mapping.address}"
            self._set(None, why_not)
            await self._give_back(mapping)
            raise Unreachable(why_not)
        return mapping

    def _set(self, mapping: PortMapping | None, why_not: str) -> None:
        before, self.mapping, self.why_not = self.address, mapping, why_not
        if self.address != before:
            _log.info("the way in through the router", address=self.address)
            self.changed.fire()

    async def _give_back(self, mapping: PortMapping) -> None:
        with trio.CancelScope(shield=True), trio.move_on_after(_GOODBYE_S):
            try:
                await self._mapper.unmap(mapping)
            except Unreachable as error:
                _log.debug("the router keeps a port open until its time is over", error=str(error))
