"""News over HTTP: server-sent events, a WebSocket and long polling, all of one subscription."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Annotated, Any, Final

import msgspec
import trio
from msgspec import Meta
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from p2psync.model.versions import MAX_COUNTER
from p2psync.protocol.relay_api import Batch
from relay.api.auth import TOKEN_SIZE
from relay.api.route import EVENTS, Call, Raw, Route, decode_id
from relay.errors import ApiError
from relay.mailbox.subscriptions import Subscription, SubscriptionEnded

HEARTBEAT_S: Final = 30.0
SEND_TIMEOUT_S: Final = 30.0
"""A client that takes nothing for so long is cut off; it finds everything by its cursor."""
MAX_WAIT_S: Final = 60
POLL_MARGIN_S: Final = 30.0
_RETRY_MS: Final = 3000
_BEARER = "Bearer "

Cursor = Annotated[int, Meta(ge=0, le=MAX_COUNTER)]


class StreamQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Without `after`, and without `Last-Event-ID` in a stream of events, the news begins now."""

    after: Cursor | None = None


class PollQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Waits up to `wait` seconds for news after the cursor; without `after` it answers at once with a cursor."""

    after: Cursor | None = None
    wait: Annotated[int, Meta(ge=0, le=MAX_WAIT_S)] = 30


async def stream(call: Call) -> Response:
    """Events as they come; `Last-Event-ID` is the cursor, a comment now and then keeps the connection alive."""
    after = call.query.after
    last = call.header(b"last-event-id")
    if last is not None:
        if not last.isascii() or not last.isdigit() or len(last) > 18:
            raise ApiError(400, "bad-request", "Last-Event-ID is not one of this relay")
        after = int(last)
    return EventStream(call, after)


async def socket(call: Call) -> None:
    """As `stream`: each message is a JSON document with `events`, `cursor` and `reset`; an empty one is a heartbeat."""
    websocket = call.websocket
    assert websocket is not None
    with _subscribed(call, call.query.after) as subscription:
        async with trio.open_nursery() as nursery:
            await websocket.accept()
            nursery.start_soon(_until_closed, websocket, nursery.cancel_scope)
            await _pump(subscription, lambda batch: websocket.send_text(_json(batch, subscription).decode()))
            await websocket.close(1000)
            nursery.cancel_scope.cancel()


async def poll(call: Call) -> Batch:
    """The next events, or none when the time is over."""
    query: PollQuery = call.query
    with _subscribed(call, query.after) as subscription:
        try:
            batch = await subscription.next(query.wait)
        except SubscriptionEnded:
            batch = None
        return batch or _nothing(subscription)


class EventStream(Response):
    """A stream of server-sent events (HTML standard, section 9.2)."""

    media_type = EVENTS

    def __init__(self, call: Call, after: int | None) -> None:
        super().__init__(media_type=EVENTS)
        self._call = call
        self._after = after

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """See ASGI. ApiError 429 before anything is sent."""
        with _subscribed(self._call, self._after) as subscription:
            async with trio.open_nursery() as nursery:
                headers = [(b"content-type", EVENTS.encode())]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                nursery.start_soon(_until_gone, receive, nursery.cancel_scope)
                await _pump(subscription, lambda batch: send(_body(_format(batch), more=True)))
                await send(_body(b"", more=False))
                nursery.cancel_scope.cancel()


def _format(batch: Batch | None) -> bytes:
    """A batch as text; a comment when there is nothing to say."""
    if batch is None:
        return b":\n\n"
    blocks = [
        b"id: %d\nevent: %s\ndata: %s\n\n" % (event.event_id, event.kind.encode(), msgspec.json.encode(event))
        for event in batch.events
    ]
    if batch.reset:
        blocks.append(b"id: %d\nevent: reset\ndata: {}\n\n" % batch.cursor)
    elif not blocks:
        blocks.append(b"retry: %d\nid: %d\nevent: ready\ndata: {}\n\n" % (_RETRY_MS, batch.cursor))
    return b"".join(blocks)


async def _pump(subscription: Subscription, send: Callable[[Batch | None], Awaitable[None]]) -> None:
    """Send batches until the session ends or the client takes no more."""
    try:
        while True:
            batch = await subscription.next(HEARTBEAT_S)
            with trio.move_on_after(SEND_TIMEOUT_S) as limit:
                await send(batch)
            if limit.cancelled_caught:
                return
    except (SubscriptionEnded, WebSocketDisconnect):
        return


def _subscribed(call: Call, after: int | None) -> AbstractContextManager[Subscription]:
    """A subscription of the calling device, for as long as its token is good."""
    caller, services = call.caller, call.services
    assert call.signed is not None
    token = decode_id((call.signed.authorization or "").removeprefix(_BEARER), TOKEN_SIZE)

    async def alive() -> bool:
        return await services.sessions.account_of(token, caller.device_id, services.now()) is not None

    return services.mailbox.subscriptions.open(caller.account_id, caller.device_id, after, alive)


async def _until_gone(receive: Any, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def _until_closed(websocket: WebSocket, scope: trio.CancelScope) -> None:
    """Whatever the client says is ignored, but for its farewell."""
    while (await websocket.receive())["type"] != "websocket.disconnect":
        pass
    scope.cancel()


def _json(batch: Batch | None, subscription: Subscription) -> bytes:
    return msgspec.json.encode(batch or _nothing(subscription))


def _nothing(subscription: Subscription) -> Batch:
    return Batch([], subscription.cursor or 0)


def _body(data: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


ROUTES: Final = (
    Route("GET", "/api/v1/notifications", stream, "News as server-sent events", query=StreamQuery,
          answer=Raw(EVENTS), deadline_s=math.inf, problems=("bad-request", "rate-limited")),
    Route("WEBSOCKET", "/api/v1/notifications/socket", socket, "News over a WebSocket", query=StreamQuery,
          deadline_s=math.inf, problems=("bad-request", "rate-limited")),
    Route("GET", "/api/v1/notifications/poll", poll, "News by long polling", query=PollQuery, answer=Batch,
          deadline_s=MAX_WAIT_S + POLL_MARGIN_S, problems=("bad-request", "rate-limited")),
)  # fmt: skip
