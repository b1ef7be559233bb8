"""What a relay answers, in the terms of a folder's mailbox: nothing it says ends anything but the call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
import pytest
from trio.testing import MockClock

from p2psync.errors import ConnectionLost
from p2psync.model.ids import FolderId
from p2psync.node.relay_folder import RelayFolder
from p2psync.ports import HttpResponse
from p2psync.protocol import relay_api as api
from p2psync.sync.mailbox.service import (
    ChunksMissing,
    Contradicted,
    FeedPage,
    MailboxRefused,
    MailboxUnavailable,
    OverQuota,
    Superseded,
)
from p2psync.sync.pulse import Pulse
from relay.errors import ApiError
from tests.net.test_relay_call import ACCOUNT, Http, answer

FOLDER = FolderId(b"f" * 16)
HEADER = bytes(range(200))


def refusal(error: ApiError) -> HttpResponse:
    """As the relay writes it."""
    return HttpResponse(
        error.status, {"content-type": "application/problem+json"}, msgspec.json.encode(error.document())
    )


def folder_at(reply: Callable[[str, str], HttpResponse | Exception]) -> RelayFolder:
    client = Http(
        lambda method, target: answer(status=204) if _makes(method, target) else reply(method, target)
    ).client()
    return RelayFolder(lambda: client, ACCOUNT, FOLDER, Pulse())


def _makes(method: str, target: str) -> bool:
    return method == "PUT" and target.startswith("/api/v1/folders/") and target.count("/") == 4


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ApiError(409, "conflict", "no", author_seq=1, header=HEADER), Contradicted),
        (ApiError(409, "conflict", "too many chains", limit=64), MailboxRefused),
        (ApiError(507, "over-quota", "full", used=5, reserved=1, limit=6, asked=7, plan="free"), OverQuota),
        (ApiError(403, "forbidden"), MailboxRefused),
        (ApiError(404, "not-found"), MailboxUnavailable),  # put back from before it was made: it is made again
        (ApiError(500, "internal"), MailboxUnavailable),
        (ApiError(503, "unavailable"), MailboxUnavailable),
        (ConnectionLost("gone"), MailboxUnavailable),
    ],
)
async def test_refusals_of_entries(autojump_clock: MockClock, error: Exception, kind: type[Exception]) -> None:
    there = folder_at(lambda *_: refusal(error) if isinstance(error, ApiError) else error)
    with pytest.raises(kind) as raised:
        await there.append([b"entry"])
    if isinstance(raised.value, Contradicted):
        assert raised.value.header == HEADER
    if isinstance(raised.value, OverQuota):
        full = raised.value
        assert (full.used, full.reserved, full.limit, full.asked) == (5, 1, 6, 7)


async def test_conflicts_mean_what_the_call_says(autojump_clock: MockClock) -> None:
    calls: list[tuple[ApiError, Callable[[RelayFolder], Awaitable[object]], type[Exception]]] = [
        (ApiError(409, "conflict", least=3, last=9), lambda f: f.post_snapshot(b"e", 2, bytes(32)), Superseded),
        (
            ApiError(409, "conflict", missing=["00"], count=1),
            lambda f: f.put_refs({bytes(32): [bytes(32)]}),
            ChunksMissing,
        ),
    ]
    for error, call, kind in calls:
        there = folder_at(lambda *_, error=error: refusal(error))  # type: ignore[misc]
        with pytest.raises(kind):
            await call(there)


async def test_a_cursor_ahead_of_the_relay_is_an_empty_page(autojump_clock: MockClock) -> None:
    there = folder_at(lambda *_: refusal(ApiError(409, "conflict", "ahead", last=4)))
    assert await there.read(9) == FeedPage((), 4)


async def test_what_is_not_there_is_none(autojump_clock: MockClock) -> None:
    there = folder_at(lambda *_: refusal(ApiError(404, "not-found")))
    assert await there.get_chunk(bytes(32)) is None
    assert await there.snapshot() is None


async def test_a_folder_of_another_account_is_used_when_it_lets_this_one_in(autojump_clock: MockClock) -> None:
    def reply(method: str, target: str) -> HttpResponse:
        if method == "PUT":
            return refusal(ApiError(409, "conflict"))
        if target.endswith("/heads"):
            return answer(api.HeadList([b"h"], []))
        return answer(api.FolderEntry(FOLDER, False, "append", 0, 0))

    client = Http(reply).client()
    there = RelayFolder(lambda: client, ACCOUNT, FOLDER, Pulse())
    assert await there.heads() == [b"h"]
