"""One call of a relay's API: signed by this device, under a session that is kept alive, tried again when that may help.

A relay may have several addresses, which lead to the same accounts: one that does not answer is passed over and tried
again later. What was sent and not answered is sent again only where that changes nothing.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Final, TypeVar
from urllib.parse import urlencode

import msgspec
import trio

from p2psync.crypto.identity import DeviceKeys
from p2psync.errors import (
    AuthenticationError,
    ConnectionLost,
    InputError,
    P2PSyncError,
    ProtocolError,
    StateError,
    Unreachable,
)
from p2psync.net.backoff import Backoff
from p2psync.ports import Clock, HttpClient, HttpResponse, HttpStream, Offload, RelayAddress, Rng
from p2psync.protocol.http_signature import NONCE_SIZE, sign_request
from p2psync.protocol.relay_api import MAX_TOKEN, KeyLogIn, Refresh, Session
from p2psync.protocol.relay_problem import read_problem

S = TypeVar("S", bound=msgspec.Struct)

MSGPACK: Final = "application/msgpack"
OCTETS: Final = "application/octet-stream"
MAX_ANSWER: Final = 1 << 20
MAX_PROBLEM: Final = 64 << 10
TIMEOUT_S: Final = 45.0
"""For one request; the relay gives up after 30 s."""
PATIENCE_S: Final = 180.0
"""For one call with all its repetitions, not counting the last one's own time."""
ATTEMPTS: Final = 5
LONGEST_DOWN_S: Final = 600.0
"""An address that does not answer is tried again after so long at the most."""
TRIAL_S: Final = 60.0
"""What a trial of an address that swallows everything may take."""
MAX_LINE: Final = 64 << 10
STREAM_IDLE_S: Final = 75.0
"""The relay says something every 30 s."""
_EARLY_S: Final = 30
"""An access token is renewed this long before it ends."""
_SKEW_S: Final = 2
"""Smaller differences of the clocks are a matter of rounding."""
_TURNS: Final = 8
"""Times that a session is opened anew for one request, where another device may end it at any time."""
_TOKEN: Final = re.compile(rf"[\w-]{{1,{MAX_TOKEN}}}", re.ASCII)
_TRY_AGAIN: Final = frozenset({429, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Request:
    """What to ask; see `RelayCaller.call`."""

    method: str
    path: str
    query: Mapping[str, object] = field(default_factory=dict)
    body: bytes | memoryview = b""
    media_type: str = MSGPACK
    headers: Mapping[str, str] = field(default_factory=dict)
    session: bool = True
    """Whether it needs a session."""
    repeatable: bool = True
    """Whether doing it twice is as good as once."""
    max_body: int = MAX_ANSWER
    timeout_s: float = TIMEOUT_S
    bulk: bool = False


@dataclass(slots=True)
class _Way:
    """One address of the relay."""

    address: RelayAddress
    http: HttpClient
    backoff: Backoff
    offset_s: int = 0
    """How far the relay's clock is ahead of ours."""
    failed: bool = False
    """Whether it did not answer when it was tried last."""
    down_until: float = -math.inf
    """It is not tried again before."""

    def lost(self) -> None:
        """It did not answer."""
        self.failed = True
        self.down_until = trio.current_time() + self.backoff.failed()

    def answered(self) -> None:
        """It did."""
        self.failed = False
        self.down_until = -math.inf
        self.backoff.succeeded()


class RelayCaller:
    """Calls one relay as one device. Use it in one trio run and `aclose` it: then it calls no more.

    A device has one session: a client that went on beside its successor would end that one's again and again.
    """

    def __init__(
        self,
        http: Callable[[RelayAddress], HttpClient],
        keys: DeviceKeys,
        addresses: Sequence[RelayAddress],
        *,
        clock: Clock,
        rng: Rng,
        offload: Offload,
        account_id: bytes = b"",
        session: Session | None = None,
        keep: Callable[[Session], Awaitable[None]] | None = None,
    ) -> None:
        """`addresses` in the order of preference; `keep` is given each new session, to store it."""
        if not addresses:
            raise InputError("no relay is named; give one with --relay URL")
        self._ways = [_Way(address, http(address), Backoff(rng, limit_s=LONGEST_DOWN_S)) for address in addresses]
        self._keys = keys
        self._clock = clock
        self._rng = rng
        self._offload = offload
        self._keep = keep
        self._renewal = trio.Lock()
        self.closed = trio.Event()
        self.account_id = account_id
        """Whose session is opened when there is none."""
        self.session = session
        self.reopen: Callable[[], Awaitable[Session]] | None = None
        """Opens a session by the password when one has ended. For a key that several devices may use at a time: it has
        one session, so each ends that of the other, and the first to be through logs the key out."""
        self._contention = Backoff(rng)

    @property
    def address(self) -> RelayAddress:
        """Where the relay is reached: the address that answers, else the one that is tried next."""
        return next((way for way in self._ways if not way.failed), self._best()).address

    async def aclose(self) -> None:
        """Close all connections; what is asked from now on ends in ConnectionLost."""
        self.closed.set()
        for way in self._ways:
            await way.http.aclose()

    # ── calls ───────────────────────────────────────────────────────────────────────────────────────────────────────
    async def fetch(self, request: Request, answer: type[S], body: msgspec.Struct | None = None) -> S:
        """Call and decode the answer. ProtocolError when it is not what it must be; else as `call`."""
        response = await self.call(request, body)
        try:
            return msgspec.msgpack.decode(response.body, type=answer)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise ProtocolError(f"the relay's answer to {request.path} cannot be read; update both sides") from None

    async def call(self, request: Request, body: msgspec.Struct | None = None) -> HttpResponse:
        """One call, repeated when that may help; the answer of a success.

        Raises:
            RelayRefusal: the relay said no.
            Unreachable, ConnectionLost: it does not answer, also not later.
            AuthenticationError: something else answers at its address.
            ProtocolError: what it answers makes no sense.
            StateError: this device has no session and gets none: it is logged out or not in the account.
        """
        if body is not None:
            request = replace(request, body=msgspec.msgpack.encode(body))
        backoff = Backoff(self._rng)
        deadline = trio.current_time() + PATIENCE_S
        for attempt in range(1, ATTEMPTS + 1):
            way = self._choose()
            wait = 0.0
            try:
                response = await self._authorised(way, request)
            except (ConnectionLost, AuthenticationError, ProtocolError) as error:
                way.lost()
                sent = not isinstance(error, (Unreachable, AuthenticationError))
                if attempt == ATTEMPTS or (sent and not request.repeatable):
                    raise
                if not self._another(way):
                    if not isinstance(error, ConnectionLost):
                        raise
                    wait = backoff.failed()
                failure: P2PSyncError = error
            else:
                way.answered()
                if response.status < 300:
                    return response
                refusal = read_problem(response)
                if response.status not in _TRY_AGAIN or attempt == ATTEMPTS:
                    raise refusal
                if response.status in (502, 504) and not request.repeatable:
                    raise refusal
                wait = max(backoff.failed(), _retry_after(response.headers))
                failure = refusal
            if trio.current_time() + wait > deadline:
                raise failure
            await trio.sleep(wait)
        raise AssertionError

    @asynccontextmanager
    async def stream(self, path: str, query: Mapping[str, object]) -> AsyncIterator[HttpStream]:
        """An answer that goes on, under the session. Raises as `call`; nothing is repeated."""
        way = self._choose()
        try:
            async with self._opened_stream(way, Request("GET", path, query)) as opened:
                way.answered()
                yield opened
        except (ConnectionLost, AuthenticationError, ProtocolError):
            way.lost()
            raise

    @asynccontextmanager
    async def _opened_stream(self, way: _Way, request: Request) -> AsyncIterator[HttpStream]:
        token = await self._token(way)
        for again in (True, False):
            offset = way.offset_s
            target, headers = await self._signed(way, request, token)
            headers["accept"] = "text/event-stream"
            async with way.http.stream(target, headers=headers, max_line=MAX_LINE, idle_s=STREAM_IDLE_S) as opened:
                if opened.status == 200:
                    yield opened
                    return
                refused = HttpResponse(opened.status, opened.headers, await _rest(opened))
            if refused.status != 401 or not again:
                raise read_problem(refused)
            if not self._correct_clock(way, refused, offset):
                token = await self._token(way, spent=token)

    # ── one try ─────────────────────────────────────────────────────────────────────────────────────────────────────
    async def _authorised(self, way: _Way, request: Request) -> HttpResponse:
        """One request, sent again after a 401 whose cause can be removed: a wrong clock, a session that has ended."""
        token = await self._token(way) if request.session else None
        offset = way.offset_s
        response = await self._send(way, request, token)
        if response.status == 401 and self._correct_clock(way, response, offset):
            response = await self._send(way, request, token)
        for _ in range(1 if self.reopen is None else _TURNS):
            if response.status == 401 and token is not None:
                token = await self._token(way, spent=token)
                response = await self._send(way, request, token)
        return response

    async def _send(self, way: _Way, request: Request, token: str | None) -> HttpResponse:
        target, headers = await self._signed(way, request, token)
        headers["accept"] = MSGPACK
        if request.body:
            headers["content-type"] = request.media_type
        return await way.http.request(
            request.method,
            target,
            headers=headers,
            body=request.body,
            max_body=max(request.max_body, MAX_PROBLEM),
            timeout_s=request.timeout_s,
            bulk=request.bulk,
        )

    async def _signed(self, way: _Way, request: Request, token: str | None) -> tuple[str, dict[str, str]]:
        query = urlencode(request.query)
        sign = partial(
            sign_request,
            self._keys,
            way.address.identity,
            request.method,
            request.path,
            query,
            body=request.body,
            authorization=None if token is None else f"Bearer {token}",
            created=self._now() + way.offset_s,
            nonce=self._rng.token(NONCE_SIZE),
        )
        fields = await self._offload.run(sign) if len(request.body) > MAX_PROBLEM else sign()
        return f"{request.path}?{query}" if query else request.path, {**request.headers, **fields}

    def _correct_clock(self, way: _Way, response: HttpResponse, used: int) -> bool:
        """Whether our clock was found to differ from the relay's, so that another try may succeed.

        `used` is the offset that the request was signed with: a call at the same time may have corrected it since.
        """
        try:
            theirs = int(parsedate_to_datetime(response.headers.get("date", "")).timestamp())
        except (ValueError, TypeError, OverflowError, IndexError):
            return False
        offset = theirs - self._now()
        if abs(offset - used) < _SKEW_S or theirs <= 0:
            return False
        way.offset_s = offset
        return True

    def _now(self) -> int:
        return self._clock.wall_ns() // 1_000_000_000

    # ── sessions ────────────────────────────────────────────────────────────────────────────────────────────────────
    async def adopt(self, session: Session) -> None:
        """Use this session from now on, and keep it. ProtocolError when its tokens are none."""
        if not (_TOKEN.fullmatch(session.access_token) and _TOKEN.fullmatch(session.refresh_token)):
            raise ProtocolError("the relay gave a token that cannot be sent; update both sides")
        self.account_id, self.session = session.account_id, session
        if self._keep is not None:
            await self._keep(session)

    async def _token(self, way: _Way, spent: str | None = None) -> str:
        """A live access token, other than `spent`. StateError when this device gets none."""
        async with self._renewal:
            self._check()
            session, now = self.session, self._now() + way.offset_s
            if session is not None and session.access_expires - _EARLY_S > now and session.access_token != spent:
                return session.access_token
            if not self.account_id:
                raise StateError("this device is in no account; run: p2psync account signup, or: p2psync account login")
            if self.reopen is None:
                opened = await self._refreshed(way, session, now) or await self._opened(way)
            else:
                # To refresh would end the other's session for good measure; to wait lets it get something done.
                await trio.sleep(self._contention.failed())
                opened = await self.reopen()
            await self.adopt(opened)
            return opened.access_token

    async def _refreshed(self, way: _Way, session: Session | None, now: int) -> Session | None:
        """The session continued, if it can be."""
        if session is None or session.refresh_expires <= now:
            return None
        # It works once: when no answer comes, whether it was used up is unknown, and the key opens a new session.
        self.session = None
        with contextlib.suppress(ConnectionLost):
            return await self._session(way, "/api/v1/sessions/refresh", Refresh(session.refresh_token))
        return None

    async def _opened(self, way: _Way) -> Session:
        opened = await self._session(way, "/api/v1/sessions/key", KeyLogIn(self.account_id))
        if opened is None:
            raise StateError(
                "the relay does not let this device in without the password: it has logged out, or was removed from "
                "the account; run: p2psync account login"
            )
        return opened

    async def _session(self, way: _Way, path: str, body: msgspec.Struct) -> Session | None:
        """A session, or None for a 401."""
        request = Request("POST", path, body=msgspec.msgpack.encode(body), session=False)
        offset = way.offset_s
        response = await self._send(way, request, None)
        if response.status == 401 and self._correct_clock(way, response, offset):
            response = await self._send(way, request, None)
        if response.status == 401:
            return None
        if response.status != 200:
            raise read_problem(response)
        try:
            session = msgspec.msgpack.decode(response.body, type=Session)
        except (msgspec.MsgspecError, ValueError):
            raise ProtocolError("the relay's answer to a log-in cannot be read; update both sides") from None
        if session.account_id != self.account_id:
            raise ProtocolError("the relay has opened a session of another account")
        return session

    def _check(self) -> None:
        if self.closed.is_set():
            raise ConnectionLost("this session at the relay is over, and another one may be in its place; try again")

    # ── addresses ───────────────────────────────────────────────────────────────────────────────────────────────────
    def _choose(self) -> _Way:
        """Where a call goes. One that did not answer is tried by one call at a time while another does."""
        self._check()
        way = self._best()
        if way.failed and any(not other.failed for other in self._ways):
            way.down_until = trio.current_time() + TRIAL_S
        return way

    def _best(self) -> _Way:
        """The first address that is not known to be down, else the one that may be up again first."""
        now = trio.current_time()
        return next((way for way in self._ways if way.down_until <= now), min(self._ways, key=lambda w: w.down_until))

    def _another(self, tried: _Way) -> bool:
        now = trio.current_time()
        return any(way is not tried and way.down_until <= now for way in self._ways)


def _retry_after(headers: Mapping[str, str]) -> float:
    text = headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 7 else 0.0


async def _rest(stream: HttpStream) -> bytes:
    """The body of a refusal, which is one line."""
    lines: list[bytes] = []
    while sum(map(len, lines)) < MAX_PROBLEM and (line := await stream.line()) is not None:
        lines.append(line)
    return b"\n".join(lines)
