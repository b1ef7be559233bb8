"""The account service of a relay, as calls."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from p2psync.errors import ProtocolError
from p2psync.membership.sigchain import MAX_CHAIN
from p2psync.net.relay_call import RelayCaller, Request
from p2psync.protocol import relay_api as api

S = TypeVar("S", bound=msgspec.Struct)


class AccountCalls:
    """Sign-up, sessions, passwords, the chain of devices, plans. Every call raises as `RelayCaller.call`.

    A session that a call opens is the client's from then on.
    """

    def __init__(self, caller: RelayCaller) -> None:
        self._caller = caller

    # ── beginning and end ───────────────────────────────────────────────────────────────────────────────────────────
    async def sign_up(self, email: str, login_key: bytes, genesis: bytes) -> None:
        """Ask for an account whose chain begins with `genesis`; the relay mails a code, or why there is none."""
        await self._sensitive("/api/v1/accounts", api.SignUp(email, login_key, genesis))

    async def verify(self, account_id: bytes, code: str) -> None:
        """The account exists, and this device has a session. RelayRefusal `unauthorized` for a wrong code."""
        await self._open("/api/v1/accounts/verify", api.Verification(account_id, code))

    async def delete(self, login_key: bytes) -> None:
        """Delete the account and all it stored."""
        request = Request("POST", "/api/v1/account/delete", repeatable=False)
        await self._caller.call(request, api.Deletion(login_key))

    # ── sessions and passwords ──────────────────────────────────────────────────────────────────────────────────────
    async def log_in(self, email: str, login_key: bytes) -> None:
        """A session by password. RelayRefusal `unauthorized` when it is wrong, `device-unknown`, `suspended`."""
        await self._open("/api/v1/sessions", api.LogIn(email, login_key))

    async def log_in_as_one_of_many(self, email: str, login_key: bytes) -> None:
        """As `log_in`, with a key that other devices may use at the same time; opened again whenever they end it."""
        await self.log_in(email, login_key)
        request = Request("POST", "/api/v1/sessions", session=False, repeatable=False)
        self._caller.reopen = lambda: self._caller.fetch(request, api.Session, api.LogIn(email, login_key))

    async def log_in_by_key(self, account_id: bytes) -> None:
        """A session by this device's key. RelayRefusal `unauthorized` when it has logged out or is not in there."""
        await self._open("/api/v1/sessions/key", api.KeyLogIn(account_id))

    async def log_out(self) -> None:
        """End this device's session; the next one needs the password."""
        await self._caller.call(Request("DELETE", "/api/v1/sessions", repeatable=False))
        self._caller.session = self._caller.reopen = None

    async def ask_reset(self, email: str) -> None:
        """Have a code mailed with which this device may set a new password."""
        await self._sensitive("/api/v1/password-resets", api.ResetRequest(email))

    async def reset(self, email: str, code: str, login_key: bytes) -> None:
        """Set a new password by the mailed code; every session ends."""
        await self._sensitive("/api/v1/password-resets/confirm", api.Reset(email, code, login_key))

    async def change_password(self, old: bytes, new: bytes) -> None:
        """Set a new password (both as login keys); every session ends."""
        request = Request("PUT", "/api/v1/account/password", repeatable=False)
        await self._caller.call(request, api.PasswordChange(old, new))

    # ── the account ─────────────────────────────────────────────────────────────────────────────────────────────────
    async def status(self) -> api.AccountStatus:
        """Plan, usage and numbers."""
        return await self._get("/api/v1/account", api.AccountStatus)

    async def devices(self) -> list[api.DeviceEntry]:
        """What the relay knows of the devices; who they are, only the chain says."""
        return (await self._get("/api/v1/account/devices", api.DeviceList)).devices

    async def chain(self, start: int = 0) -> list[bytes]:
        """The links from `start` on, as the relay has them: verify them. ProtocolError when they are endless."""
        links: list[bytes] = []
        more = True
        while more:
            request = Request("GET", "/api/v1/account/chain", {"start": start + len(links)})
            page = await self._caller.fetch(request, api.ChainPage)
            links += page.links
            if start + len(links) > MAX_CHAIN:
                raise ProtocolError("a relay shows an endless chain of an account")
            more = page.more and bool(page.links)
        return links

    async def append_link(self, link: bytes) -> None:
        """Append the next link. RelayRefusal `conflict` when another was there first, `plan-limit`."""
        await self._caller.call(Request("POST", "/api/v1/account/chain"), api.NewLink(link))

    # ── plans ───────────────────────────────────────────────────────────────────────────────────────────────────────
    async def plans(self) -> api.PlanList:
        """What can be subscribed to; needs no session."""
        return await self._caller.fetch(Request("GET", "/api/v1/plans", session=False), api.PlanList)

    async def subscribe(self, plan: str) -> api.Subscription:
        """Subscribe; the answer says whether the plan waits for a payment. RelayRefusal `not-found`."""
        return await self._caller.fetch(Request("PUT", "/api/v1/account/plan"), api.Subscription, api.PlanChoice(plan))

    async def unsubscribe(self) -> None:
        """Back to the free allowance."""
        await self._caller.call(Request("DELETE", "/api/v1/account/plan"))

    async def _get(self, path: str, answer: type[S]) -> S:
        return await self._caller.fetch(Request("GET", path), answer)

    async def _sensitive(self, path: str, body: msgspec.Struct) -> None:
        await self._caller.call(Request("POST", path, session=False, repeatable=False), body)

    async def _open(self, path: str, body: msgspec.Struct) -> None:
        request = Request("POST", path, session=False, repeatable=False)
        await self._caller.adopt(await self._caller.fetch(request, api.Session, body))
