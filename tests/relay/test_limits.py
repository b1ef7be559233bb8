"""How often who may call, and what operators see of it: limits, metrics, logs, health."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator

import msgspec
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from relay.allowances import WINDOW_S
from relay.api.app import build_app
from relay.api.health import REMEMBER_S
from relay.api.limits import Limiter
from relay.api.route import Rate
from relay.api.routes import all_routes
from relay.config import Limits, Log, Metrics, Secret
from relay.errors import ApiError
from relay.logs import configure_logging, get_logger
from tests.relay.stack import RELAY, Client, ManualClock, Stack

LIMITS = Limits(standard_per_account=3, standard_per_address=5, sensitive_per_account=1)


def taken(limiter: Limiter, caller: bytes, rate: Rate = Rate.STANDARD) -> bool:
    try:
        limiter.take_account(rate, caller)
    except ApiError as error:
        return not error.headers["Retry-After"]
    return True


def test_an_allowance_is_used_up_and_comes_back_evenly() -> None:
    clock = ManualClock()
    limiter = Limiter(LIMITS, clock)
    assert [taken(limiter, b"a") for _ in range(4)] == [True, True, True, False]
    assert taken(limiter, b"b")
    assert taken(limiter, b"a", Rate.SENSITIVE)
    clock.advance(WINDOW_S / 3)
    assert [taken(limiter, b"a"), taken(limiter, b"a")] == [True, False]
    clock.advance(10 * WINDOW_S)
    assert [taken(limiter, b"a") for _ in range(4)] == [True, True, True, False]


@given(st.lists(st.floats(0, 30), min_size=1, max_size=60), st.integers(1, 7))
def test_no_window_sees_more_than_twice_the_allowance(pauses: list[float], allowed: int) -> None:
    clock = ManualClock()
    limiter = Limiter(Limits(standard_per_account=allowed), clock)
    times = []
    for pause in pauses:
        clock.advance(pause)
        if taken(limiter, b"a"):
            times.append(clock.monotonic())
    for start in times:
        assert sum(start <= time < start + WINDOW_S for time in times) <= 2 * allowed


def test_memory_is_bounded_and_who_is_whole_is_forgotten_first() -> None:
    clock = ManualClock()
    limiter = Limiter(LIMITS, clock, most=100)
    for number in range(90):
        assert taken(limiter, b"%d" % number)
    clock.advance(WINDOW_S)
    while taken(limiter, b"busy"):
        pass
    for number in range(90, 1000):
        assert taken(limiter, b"%d" % number)
        assert len(limiter._allowances) <= 100
        assert number > 110 or not taken(limiter, b"busy")


@pytest.fixture
def strict(stack: Stack) -> Stack:
    """A stack with `LIMITS`."""
    stack.services.config = msgspec.structs.replace(stack.services.config, limits=LIMITS)
    stack.app = build_app(stack.services, all_routes(), {RELAY})
    return stack


def test_who_waits_as_long_as_it_is_told_is_served() -> None:
    clock = ManualClock()
    limiter = Limiter(Limits(standard_per_account=7), clock)
    while taken(limiter, b"a"):
        clock.advance(0.1)
    with pytest.raises(ApiError) as caught:
        limiter.take_account(Rate.STANDARD, b"a")
    assert (caught.value.status, caught.value.code) == (429, "rate-limited")
    clock.advance(float(caught.value.headers["Retry-After"]))
    assert taken(limiter, b"a")


async def test_requests_are_limited_by_account_and_by_network(strict: Stack) -> None:
    ann, bob = strict.client(b"a" * 16), strict.client(b"b" * 16)
    far = Client(strict, strict.keys(), address=("198.51.100.9", 1))
    statuses = [(await ann.get("/api/v1/account/devices")).status for _ in range(4)]
    assert statuses[3] == 429
    assert 429 not in statuses[:3]
    assert (await bob.get("/nowhere", signed=False)).status == 404
    refused = await bob.get("/healthz", signed=False)
    assert (refused.status, refused.problem, refused.headers["retry-after"]) == (429, "rate-limited", "12")
    assert (await far.get("/healthz", signed=False)).status == 200


async def test_metrics_are_for_this_machine_or_by_token(stack: Stack) -> None:
    client = stack.client()
    await client.get("/healthz", signed=False)
    await client.get("/nowhere/secret-name", signed=False)
    assert (await client.get("/metrics", signed=False)).status == 401
    local = Client(stack, stack.keys(), address=("127.0.0.1", 1))
    shown = (await local.get("/metrics", signed=False)).body.decode()
    assert 'p2psync_relay_requests_total{method="GET",route="/healthz",status="200"} 1.0' in shown
    assert 'p2psync_relay_requests_total{method="",route="",status="404"} 1.0' in shown
    assert "secret-name" not in shown
    stack.services.config = msgspec.structs.replace(stack.services.config, metrics=Metrics(token=Secret("t" * 20)))
    for token, status in (("t" * 20, 200), ("x", 401), ("", 401)):
        headers = {"Authorization": f"Bearer {token}"}
        assert (await local.get("/metrics", signed=False, headers=headers)).status == status


async def test_readiness_tells_what_is_missing(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    client = stack.client()
    assert (await client.get("/readyz", signed=False)).status == 200

    def fail() -> None:
        raise OSError("no space")

    monkeypatch.setattr(stack.services.ports.store, "probe", fail)
    assert (await client.get("/readyz", signed=False)).status == 200  # remembered
    stack.clock.advance(REMEMBER_S)
    refused = await client.get("/readyz", signed=False)
    assert (refused.status, refused.json()["missing"]) == (503, ["chunks"])
    stack.services.database.engine.dispose()
    stack.clock.advance(REMEMBER_S)
    assert (await client.get("/healthz", signed=False)).status == 200


@pytest.fixture
def logs(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], list[dict[str, object]]]]:
    before = structlog.get_config()
    handlers = logging.getLogger().handlers[:]
    configure_logging("info")
    yield lambda: [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    structlog.configure(**before)
    logging.getLogger().handlers[:] = handlers


def test_logs_are_json_lines_without_secrets(logs: Callable[[], list[dict[str, object]]]) -> None:
    log = get_logger("relay.test")
    log.debug("unseen")
    log.info("seen", password="hunter2", token=b"x", text="x" * 5000, error=OSError("e"))
    try:
        raise ValueError("inner")
    except ValueError as error:
        log.error("failed", exc_info=error)
    logging.getLogger("library").warning("a %s", "warning")
    seen, failed, forwarded = logs()
    assert (seen["event"], seen["logger"], seen["password"], seen["token"]) == (
        "seen", "relay.test", "[redacted]", "[redacted]",
    )  # fmt: skip
    assert len(str(seen["text"])) < 2100
    assert "ValueError: inner" in str(failed["exception"])
    assert (forwarded["event"], forwarded["level"], forwarded["logger"]) == ("a warning", "warning", "library")


async def test_the_access_log_has_no_names(logs: Callable[[], list[dict[str, object]]], stack: Stack) -> None:
    stack.app = build_app(stack.services, all_routes(), {RELAY})
    client = stack.client(b"a" * 16)
    await client.get("/api/v1/account/devices", query={"secret-field": "secret-value"})
    await client.get("/secret-path")
    await client.get("/healthz")
    lines = logs()
    assert [line["route"] for line in lines] == ["/api/v1/account/devices", ""]
    assert lines[0]["network"] == "203.0.113.0/24"
    assert lines[0]["account"] == "61616161"
    assert "secret" not in json.dumps(lines)
    assert client.token is not None
    assert client.token not in json.dumps(lines)
    for silent in (Log(access=False), Log(level="warning")):
        stack.services.config = msgspec.structs.replace(stack.services.config, log=silent)
        stack.app = build_app(stack.services, all_routes(), {RELAY})
        await client.get("/secret-path")
        assert logs() == []
