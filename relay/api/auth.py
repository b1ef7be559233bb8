"""Who is calling: the signature of the device's key, fresh and never seen before, and the session it belongs to.

Every failure is the same 401. Every answer carries `Date`, so that a device whose clock is wrong can sign again with
the right time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Any, Final

from p2psync.errors import AuthenticationError
from p2psync.model.ids import DeviceId
from p2psync.protocol.http_signature import Signed, verify_request
from relay.api.route import Auth, Caller, decode_id
from relay.errors import ApiError, unauthorized
from relay.ports import Sessions

MAX_SKEW_S: Final = 60
"""A request signed longer ago, or further in the future, is refused."""
MAX_NONCES: Final = 1 << 19
"""Requests remembered per window of time; more are refused until the window has passed."""
TOKEN_SIZE: Final = 48
"""An account ID and 32 random bytes."""
_BEARER = "Bearer "


class Nonces:
    """Remembers the requests of the last two minutes, so that none works twice; bounded."""

    def __init__(self, started: int) -> None:
        self._started = started
        self._window = started // (2 * MAX_SKEW_S)
        self._seen: tuple[set[bytes], set[bytes]] = (set(), set())

    def check_time(self, created: int, now: int) -> None:
        """ApiError 401 when a request is stale, or from before this process began, which knows no older nonces."""
        if abs(now - created) > MAX_SKEW_S or created < self._started:
            raise unauthorized()

    def use(self, signed: Signed, now: int) -> None:
        """Take note of a request whose time was checked. ApiError 401 when it is not the first of its kind."""
        window = now // (2 * MAX_SKEW_S)
        if window != self._window:
            self._seen = (set(), self._seen[0] if window == self._window + 1 else set())
            self._window = window
        name = hashlib.blake2b(signed.signing_key + signed.nonce, digest_size=16).digest()
        if name in self._seen[0] or name in self._seen[1]:
            raise unauthorized()
        if len(self._seen[0]) >= MAX_NONCES:
            raise ApiError(503, "unavailable", "the relay is too busy; try again in two minutes")
        self._seen[0].add(name)


class Authenticator:
    """Turns the head of a request into its caller."""

    def __init__(self, sessions: Sessions, names: Collection[str], started: int) -> None:
        """`names`: by which devices may know this relay; they may change while it runs."""
        self._names = names
        self._sessions = sessions
        self._nonces = Nonces(started)

    def check_signature(self, method: str, scope: Any, now: int) -> Signed:
        """The signature of a request. ApiError 401 when it is missing, wrong, stale, or meant for another relay."""
        try:
            signed = verify_request(method, scope["raw_path"], scope["query_string"], scope["headers"])
        except AuthenticationError:
            raise unauthorized() from None
        if signed.relay not in self._names:
            raise unauthorized()
        self._nonces.check_time(signed.created, now)
        return signed

    async def identify(self, auth: Auth, signed: Signed, now: int) -> Caller:
        """Who signed, once. ApiError 401 for a replay, or when the route asks for a session and there is none.

        Only callers that are known take up memory, where a session is asked for.
        """
        device_id = signed.device_id
        caller = Caller(device_id, signed.signing_key, await self._account(auth, signed, device_id, now))
        self._nonces.use(signed, now)
        return caller

    async def _account(self, auth: Auth, signed: Signed, device_id: DeviceId, now: int) -> bytes:
        if auth is Auth.SIGNED:
            return b""
        authorization = signed.authorization or ""
        if not authorization.startswith(_BEARER):
            raise unauthorized()
        try:
            token = decode_id(authorization.removeprefix(_BEARER), TOKEN_SIZE)
        except ApiError:
            raise unauthorized() from None
        account_id = await self._sessions.account_of(token, device_id, now)
        if account_id is None:
            raise unauthorized()
        return account_id
