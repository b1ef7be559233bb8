"""The account of a device that only pretends."""

from __future__ import annotations

from p2psync.errors import StateError
from p2psync.node import views

ACCOUNT = views.AccountView(
    "QUJDREVGR0hJSktMTU5PUA",
    "me@example.org",
    ["https://relay.example:443/"],
    "active",
    2,
    views.AccountUsage("home", 1 << 30, 0, 2 << 30, 2, 5, 1, 16, "office", "https://pay.example/"),
    [views.Problem("relay-unreachable", "the relay \x1b[31mdoes not answer", "try again later")],
)
RECOVERY_KEY = "ABCD-EFGH-IJKL"


class FakeAccount:
    """Records what it was asked in `calls`."""

    calls: list[tuple[object, ...]]
    in_account = True

    async def account_sign_up(self, relays: list[str], email: str, login_key: bytes) -> views.NewAccount:
        self.calls.append(("account_sign_up", relays, email, login_key))
        return views.NewAccount(ACCOUNT.account_id, email, relays[0], RECOVERY_KEY)

    async def account_verify(self, code: str) -> views.AccountView:
        self.calls.append(("account_verify", code))
        return ACCOUNT

    async def account_log_in(
        self,
        email: str,
        login_key: bytes,
        relays: list[str] = [],  # noqa: B006
        recovery_key: str = "",
    ) -> views.AccountView:
        self.calls.append(("account_log_in", email, login_key, relays, recovery_key))
        return ACCOUNT

    async def account_status(self) -> views.AccountView:
        if not self.in_account:
            raise StateError("this device is in no account")
        return ACCOUNT

    async def account_devices(self) -> list[views.AccountDevice]:
        return [
            views.AccountDevice("AAAAAAA-BBBBBBB", "desk", "device", here=True, seen=1_700_000_000.0),
            views.AccountDevice("RECOVER-QQQQQQQ", "recovery key", "recovery"),
        ]

    async def account_remove_device(self, device: str) -> None:
        self.calls.append(("account_remove_device", device))

    async def account_log_out(self, forget: bool = False) -> None:
        self.calls.append(("account_log_out", forget))

    async def account_ask_reset(self, email: str, relays: list[str] = []) -> None:  # noqa: B006
        self.calls.append(("account_ask_reset", email, relays))

    async def account_reset(self, email: str, code: str, login_key: bytes, relays: list[str] = []) -> None:  # noqa: B006
        self.calls.append(("account_reset", email, code, login_key, relays))

    async def account_change_password(self, login_key: bytes, new_login_key: bytes) -> None:
        self.calls.append(("account_change_password", login_key, new_login_key))

    async def account_delete(self, login_key: bytes) -> None:
        self.calls.append(("account_delete", login_key))

    async def account_plans(self, relays: list[str] = []) -> list[views.PlanView]:  # noqa: B006
        return [views.PlanView("", "", 1 << 30, 5, 16), views.PlanView("home", "3 EUR a month", 1 << 40, 10, 64)]

    async def account_subscribe(self, plan: str = "") -> views.PlanChange:
        self.calls.append(("account_subscribe", plan))
        return views.PlanChange(plan, active=plan != "home", reference="r1", checkout="https://pay.example/r1")

    async def account_recovery(self) -> views.RecoveryKey:
        return views.RecoveryKey(RECOVERY_KEY)
