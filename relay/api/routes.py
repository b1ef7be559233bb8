"""Every route of the relay, from the handlers of each room."""

from __future__ import annotations

from relay.api import accounts, blocks, health, metrics
from relay.api.route import Route


def all_routes() -> tuple[Route, ...]:
    """The table, in the order of the API document. A room adds its `ROUTES` here."""
    return (*health.ROUTES, *metrics.ROUTES, *accounts.ROUTES, *blocks.ROUTES)
