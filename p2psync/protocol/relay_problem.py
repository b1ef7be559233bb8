"""A relay's refusal (RFC 9457), told to the person at the keyboard: what happened, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from p2psync.errors import RelayRefusal
from p2psync.ports import HttpResponse
from p2psync.protocol.relay_api import PROBLEM_PREFIX

MAX_TEXT = 500
_MEDIA_TYPE = "application/problem+json"
_GIB = 1 << 30
_REMEDIES = {
    "unauthorized": "the relay does not accept this; log in again with: p2psync account login",
    "forbidden": "the account may not do that at the relay",
    "not-found": "the relay knows of no such thing, or it is not for this account",
    "device-unknown": "the password is right, but this device is not in the account: pair it with a device that is "
    "(p2psync pair --account, there), or log in with the recovery key (p2psync account login --recovery-file FILE)",
    "suspended": "the relay's operator has suspended the account; ask them",
    "internal": "the relay failed; try again later, and tell its operator if it goes on",
    "unavailable": "the relay cannot do that now; try again in a moment",
    "too-large": "the relay takes no more than that at once",
}


class _Problem(msgspec.Struct, frozen=True):
    type: str = ""
    title: str = ""
    detail: str = ""


def read_problem(response: HttpResponse) -> RelayRefusal:
    """The error for an answer that is no success. What the relay wrote is shown with care: bounded and on one line."""
    problem, figures = _decode(response)
    code = problem.type.removeprefix(PROBLEM_PREFIX) if problem.type.startswith(PROBLEM_PREFIX) else ""
    said = _plain(problem.detail or problem.title)
    match code:
        case "over-quota":
            text = _over_quota(figures)
        case "rate-limited":
            wait = response.headers.get("retry-after", "")
            text = "too many requests to the relay; try again" + (f" in {wait[:6]} s" if wait.isdigit() else " later")
        case "plan-limit":
            text = f"the account's plan does not include that ({said}); see: p2psync account plans"
        case _ if code in _REMEDIES:
            text = _REMEDIES[code] + (f" ({said})" if problem.detail and code != "device-unknown" else "")
        case _:
            text = f"the relay refused with status {response.status}" + (f": {said}" if said else "")
    return RelayRefusal(text, code, response.status, figures)


def _decode(response: HttpResponse) -> tuple[_Problem, Mapping[str, Any]]:
    if response.headers.get("content-type", "").partition(";")[0].strip() == _MEDIA_TYPE:
        try:
            figures = msgspec.json.decode(response.body, type=dict[str, Any])
            return msgspec.convert(figures, _Problem), MappingProxyType(figures)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            pass
    return _Problem(), MappingProxyType({})


def _over_quota(figures: Mapping[str, Any]) -> str:
    used, limit = figures.get("used"), figures.get("limit")
    shown = ""
    if isinstance(used, int) and isinstance(limit, int):
        shown = f" ({used / _GIB:.2f} of {limit / _GIB:.2f} GiB used)"
    return (
        f"the account's storage at the relay is full{shown}; devices that are online together go on without it. "
        "For more: p2psync account plans"
    )


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text[:MAX_TEXT])
