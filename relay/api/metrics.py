"""Figures for Prometheus: what was asked, how it ended, how long it took."""

from __future__ import annotations

import hmac
from ipaddress import ip_address
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.responses import Response

from relay.api.route import Auth, Call, Raw, Route
from relay.errors import unauthorized

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0)


class Metrics:
    """The relay's figures; rooms may add their own to `registry`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "p2psync_relay_requests",
            "Requests by route and status.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "p2psync_relay_request_seconds",
            "Time to the end of the answer, streams left out.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._bytes = Counter("p2psync_relay_body_bytes", "Bytes of bodies.", ("direction",), registry=self.registry)
        self._counted: dict[tuple[str, str, int], Counter] = {}
        self._timed: dict[str, Histogram] = {}
        self._received, self._sent = self._bytes.labels("received"), self._bytes.labels("sent")
        self.streams = Gauge("p2psync_relay_streams", "Notification streams open.", registry=self.registry)
        self.connections = Gauge("p2psync_relay_connections", "Connections open.", registry=self.registry)
        self.refused_connections = Gauge(
            "p2psync_relay_refused_connections", "Connections refused since the start.", registry=self.registry
        )
        self.forwarded_pairs = Gauge(
            "p2psync_relay_forwarded_pairs", "Pairs of devices that are forwarded for.", registry=self.registry
        )

    def request(
        self, route: Route | None, method: str, *, status: int, seconds: float, received: int, sent: int
    ) -> None:
        """Count one request; `route` None when there was none for it."""
        kind = (method, route.path, status) if route else ("", "", status)
        counter = self._counted.get(kind)
        if counter is None:  # to find it by its labels takes five times as long
            counter = self._counted[kind] = self._requests.labels(*kind)
        counter.inc()
        if route is not None and not route.is_stream:
            histogram = self._timed.get(route.path)
            if histogram is None:
                histogram = self._timed[route.path] = self._seconds.labels(route.path)
            histogram.observe(seconds)
        if received:
            self._received.inc(received)
        if sent:
            self._sent.inc(sent)


async def show_metrics(call: Call) -> Response:
    """All figures in the text format of Prometheus."""
    token = call.services.config.metrics.token
    if token:
        if not hmac.compare_digest(call.fields.get(b"authorization", b""), f"Bearer {token}".encode()):
            raise unauthorized()
    elif not _is_local(call.scope.get("client")):
        raise unauthorized()
    return Response(generate_latest(call.services.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _is_local(client: tuple[str, int] | None) -> bool:
    return client is not None and ip_address(client[0].partition("%")[0]).is_loopback


ROUTES = (
    Route(
        "GET",
        "/metrics",
        show_metrics,
        "Figures for Prometheus; by token, or for this machine only",
        auth=Auth.NONE,
        answer=Raw("text/plain"),
        problems=("unauthorized",),
        logged=False,
    ),
)
