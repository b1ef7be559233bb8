"""Every route of the relay, from the handlers of each room."""

from __future__ import annotations

from relay.api import accounts, blocks, health, mailbox, metrics, notifications, rendezvous
from relay.api.openapi import document_route
from relay.api.route import Route


def all_routes() -> tuple[Route, ...]:
    """The table, in the order of the API document. A room adds its `ROUTES` here."""
    rooms = (health, metrics, accounts, mailbox, notifications, rendezvous, blocks)
    routes = tuple(route for room in rooms for route in room.ROUTES)
    return (*routes, document_route(routes))
