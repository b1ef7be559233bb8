"""Everything a caller may be told: one table of problem codes, rendered as RFC 9457 problem details."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

CONTENT_TYPE: Final = "application/problem+json"
TYPE_PREFIX: Final = "urn:p2psync:problem:"


class Problem(msgspec.Struct, frozen=True):
    """One row of the table: the status and the title that never change with the occasion."""

    status: int
    title: str


PROBLEMS: Final[Mapping[str, Problem]] = {
    # every request
    "bad-request": Problem(400, "The request is not understood"),
    "digest-mismatch": Problem(400, "The body is not what its Content-Digest says"),
    "unauthorized": Problem(401, "The request is not authenticated"),
    "forbidden": Problem(403, "This account may not do that"),
    "not-found": Problem(404, "There is no such thing, or it is not for this account"),
    "method-not-allowed": Problem(405, "This path has no such method"),
    "not-acceptable": Problem(406, "No wanted form of the answer exists"),
    "timeout": Problem(408, "The request did not arrive in time"),
    "length-required": Problem(411, "The body needs a Content-Length"),
    "too-large": Problem(413, "The body is larger than this path takes"),
    "unsupported-media-type": Problem(415, "The body has the wrong media type"),
    "range-not-satisfiable": Problem(416, "The range is not within the chunk"),
    "rate-limited": Problem(429, "Too many requests"),
    "internal": Problem(500, "The relay failed"),
    "unavailable": Problem(503, "The relay cannot do that now"),
    # accounts
    "device-unknown": Problem(403, "This device is not in the account"),
    "suspended": Problem(403, "The account is suspended"),
    "plan-limit": Problem(403, "The account's plan does not include that many"),
    # storage
    "conflict": Problem(409, "Something else came first"),
    "over-quota": Problem(507, "The account's storage is full"),
}
"""Every code by which a request can be refused, with its status and title; clients act on the code."""


class ApiError(Exception):
    """A refusal, meant for the caller: `detail` says what happened and what to do next, `figures` what a client reads.

    `headers` join those of the answer. The status is that of the code's row in `PROBLEMS`.
    """

    def __init__(
        self, status: int, code: str, detail: str = "", *, headers: Mapping[str, str] | None = None, **figures: object
    ) -> None:
        assert PROBLEMS[code].status == status, f"problem {code!r} has the status {PROBLEMS[code].status}"
        super().__init__(detail or PROBLEMS[code].title)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = dict(headers or {})
        self.figures = figures

    def document(self) -> dict[str, object]:
        """The problem details: type, title, status, detail when there is one, then the figures."""
        text = {"detail": self.detail} if self.detail else {}
        title = PROBLEMS[self.code].title
        return {"type": TYPE_PREFIX + self.code, "title": title, "status": self.status, **text, **self.figures}


def unauthorized() -> ApiError:
    """The one answer to every failure of authentication: it never says which part was wrong."""
    return ApiError(401, "unauthorized")


def not_found() -> ApiError:
    """The one answer to what does not exist and to what this caller may not know of."""
    return ApiError(404, "not-found")
