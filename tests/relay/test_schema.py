"""A short share of `make schema`: what is generated for each operation is answered as the document says."""

from __future__ import annotations

import pytest

from p2psync.model.ids import DeviceId
from p2psync.protocol.http_signature import Signed
from relay.api import openapi
from relay.api.auth import Authenticator
from relay.api.route import Auth, Route
from relay.api.routes import all_routes
from relay.errors import ApiError
from tests.relay.schema.campaign import DOCUMENT, run


def documented() -> list[Route]:
    """What schemathesis can call; the document itself it fetches once."""
    return [route for route in all_routes() if route.method != "WEBSOCKET" and route.path != DOCUMENT]


@pytest.mark.filterwarnings("default")
def test_document_and_relay_agree() -> None:
    report = run(examples=2, phases=("examples", "fuzzing"))
    assert report.wrong == []
    assert report.operations >= {f"{route.method} {route.path}" for route in documented()}
    assert report.probes > 2 * report.requests
    assert len({name for name, status in report.statuses if status < 300}) > len(documented()) // 2


@pytest.mark.filterwarnings("default")
def test_disagreements_and_open_doors_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    strict = Authenticator._account

    async def lax(self: Authenticator, auth: Auth, signed: Signed, device_id: DeviceId, now: int) -> bytes:
        try:
            return await strict(self, auth, signed, device_id, now)
        except ApiError:
            return b"a" * 16

    monkeypatch.setattr(Authenticator, "_account", lax)
    monkeypatch.setattr(openapi, "_codes", lambda _route: {"internal"})
    report = run(examples=1, phases=("fuzzing",))
    assert any("stolen token" in what for what in report.bypasses)
    assert any("status_code_conformance" in what for what in report.failures)
