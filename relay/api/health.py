"""Whether the relay lives, and whether it can serve."""

from __future__ import annotations

import msgspec

import p2psync
from relay.api.route import Auth, Call, Route


class Health(msgspec.Struct, frozen=True):
    """The relay answers."""

    service: str
    version: str


async def live(_call: Call) -> Health:
    """Answers as long as the process can."""
    return Health("p2psync-relay", p2psync.__version__)


ROUTES = (Route("GET", "/healthz", live, "Whether the relay is alive", auth=Auth.NONE, answer=Health),)
