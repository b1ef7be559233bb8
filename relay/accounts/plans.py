"""What an account may use: the plans of the operator's configuration, and the free allowance of everybody else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, func, select, update

from p2psync.membership.sigchain import DeviceKind
from relay.accounts.tables import accounts, devices
from relay.config import Allowance, Plan
from relay.errors import ApiError

FREE = ""
"""The stored name of no plan."""
_PLAN_OF = select(accounts.c.plan).where(accounts.c.account_id == bindparam("account"))


@dataclass(frozen=True, slots=True)
class Limits:
    """What one account may use, and under which plan."""

    plan: str
    """A name in the configuration, or `FREE`."""
    bytes: int
    devices: int
    folders: int


class Plans:
    """The operator's plans. A stored plan that the configuration no longer has counts as none."""

    def __init__(self, free: Allowance, plans: Sequence[Plan] = ()) -> None:
        self.free = Limits(FREE, int(free.bytes), free.devices, free.folders)
        self.listed = tuple(plans)
        self._limits = {plan.name: Limits(plan.name, int(plan.bytes), plan.devices, plan.folders) for plan in plans}

    def named(self, name: str) -> Plan | None:
        """The plan of this name, None when there is none."""
        return next((plan for plan in self.listed if plan.name == name), None)

    def limits(self, c: Connection, account_id: bytes) -> Limits:
        """What an account may use. An account that does not exist may use nothing."""
        name = c.execute(_PLAN_OF, {"account": account_id}).scalar_one_or_none()
        if name is None:
            return Limits(FREE, 0, 0, 0)
        return self._limits.get(name, self.free)

    def check_device(self, c: Connection, account_id: bytes) -> None:
        """ApiError 403 `plan-limit` unless one more device fits into the plan. Recovery keys are not counted."""
        limit = self.limits(c, account_id).devices
        count = c.execute(
            select(func.count())
            .select_from(devices)
            .where(devices.c.account_id == account_id, devices.c.kind == DeviceKind.DEVICE)
        ).scalar_one()
        if count >= limit:
            raise plan_limit("devices", limit)

    def check_folder(self, c: Connection, account_id: bytes, owned: int) -> None:
        """ApiError 403 `plan-limit` unless an account that owns so many folders may own one more."""
        limit = self.limits(c, account_id).folders
        if owned >= limit:
            raise plan_limit("folders", limit)


def set_plan(c: Connection, account_id: bytes, plan: str) -> bool:
    """Put an account on a plan, or on `FREE`; nothing it has stored is removed. Whether there is such an account."""
    return c.execute(update(accounts).where(accounts.c.account_id == account_id).values(plan=plan)).rowcount == 1


def plan_limit(what: str, limit: int) -> ApiError:
    """The refusal of one thing too many."""
    return ApiError(
        403, "plan-limit", f"the account's plan has {limit} {what}; remove one or choose another plan", limit=limit
    )
